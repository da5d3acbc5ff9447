/*
 * The flash engine's whole-model interface (runtime/flash/include/handheld/flash.h) for dev.handheld.FlashNative.
 *
 * A failure throws dev.handheld.FlashError with the status' name and the engine's message. Paths and messages are UTF-8
 * bytes: JNI's own strings are another encoding.
 */
#include <jni.h>
#include <stdlib.h>
#include <string.h>

#include "handheld/flash.h"

typedef struct {
  hh_flash_pack* pack;
  hh_flash_model* model;
} handle;

static handle* from(jlong value) {
  return (handle*)(intptr_t)value;
}

static void throw_named(JNIEnv* env, const char* name, const char* message) {
  jclass type = (*env)->FindClass(env, "dev/handheld/FlashError");
  if (!type) return;
  jmethodID constructor = (*env)->GetMethodID(env, type, "<init>", "(Ljava/lang/String;[B)V");
  jstring status = constructor ? (*env)->NewStringUTF(env, name) : NULL;
  jsize length = (jsize)strlen(message);
  jbyteArray text = status ? (*env)->NewByteArray(env, length) : NULL;
  if (!text) return;
  (*env)->SetByteArrayRegion(env, text, 0, length, (const jbyte*)message);
  jthrowable error = (*env)->NewObject(env, type, constructor, status, text);
  if (error) (*env)->Throw(env, error);
}

/* 1 when the status is an error, which is then pending. */
static int failed(JNIEnv* env, hh_flash_status status) {
  if (status == HH_FLASH_OK) return 0;
  throw_named(env, hh_flash_status_name(status), hh_flash_last_error());
  return 1;
}

static hh_flash_status open_pack(JNIEnv* env, jbyteArray path, hh_flash_pack** pack) {
  jsize length = (*env)->GetArrayLength(env, path);
  char* text = malloc((size_t)length + 1);
  if (!text) return HH_FLASH_OUT_OF_MEMORY;
  (*env)->GetByteArrayRegion(env, path, 0, length, (jbyte*)text);
  text[length] = 0;
  hh_flash_status status = hh_flash_pack_open(text, HH_FLASH_DIRECT_IO, pack);
  free(text);
  return status;
}

JNIEXPORT jlong JNICALL Java_dev_handheld_FlashNative_open(JNIEnv* env, jclass type, jbyteArray path, jlong budget_bytes,
                                                          jint context_tokens, jint threads, jint mode) {
  (void)type;
  hh_flash_model_options options;
  hh_flash_model_options_init(&options);
  options.session.budget_bytes = (uint64_t)budget_bytes;
  if (threads > 0) options.session.compute_threads = (uint32_t)threads;
  options.context_tokens = (uint32_t)context_tokens;
  options.mode = (uint32_t)mode;
  handle* opened = calloc(1, sizeof(handle));
  hh_flash_status status = opened ? open_pack(env, path, &opened->pack) : HH_FLASH_OUT_OF_MEMORY;
  if (status == HH_FLASH_OK) status = hh_flash_model_open(opened->pack, &options, &opened->model);
  if (failed(env, status)) {
    if (opened) hh_flash_pack_close(opened->pack);
    free(opened);
    return 0;
  }
  return (jlong)(intptr_t)opened;
}

JNIEXPORT void JNICALL Java_dev_handheld_FlashNative_close(JNIEnv* env, jclass type, jlong value) {
  (void)env;
  (void)type;
  handle* opened = from(value);
  hh_flash_model_close(opened->model);
  hh_flash_pack_close(opened->pack);
  free(opened);
}

/* vocab, max_positions, dtype, eos ... */
JNIEXPORT jlongArray JNICALL Java_dev_handheld_FlashNative_info(JNIEnv* env, jclass type, jlong value) {
  (void)type;
  hh_flash_model_info model = {.struct_bytes = sizeof(model)};
  hh_flash_info pack = {.struct_bytes = sizeof(pack)};
  if (failed(env, hh_flash_pack_model_info(from(value)->pack, &model)) ||
      failed(env, hh_flash_pack_info(from(value)->pack, &pack)))
    return NULL;
  jlong fields[3 + HH_FLASH_MAX_EOS] = {model.vocab, model.max_positions, pack.dtype};
  for (uint32_t i = 0; i < model.eos_count; i++) fields[3 + i] = model.eos[i];
  jsize count = (jsize)(3 + model.eos_count);
  jlongArray result = (*env)->NewLongArray(env, count);
  if (result) (*env)->SetLongArrayRegion(env, result, 0, count, fields);
  return result;
}

/* SHA-256 of the pack's header. */
JNIEXPORT jbyteArray JNICALL Java_dev_handheld_FlashNative_identity(JNIEnv* env, jclass type, jlong value) {
  (void)type;
  hh_flash_info pack = {.struct_bytes = sizeof(pack)};
  if (failed(env, hh_flash_pack_info(from(value)->pack, &pack))) return NULL;
  jbyteArray result = (*env)->NewByteArray(env, (jsize)sizeof(pack.identity));
  if (result) (*env)->SetByteArrayRegion(env, result, 0, (jsize)sizeof(pack.identity), (const jbyte*)pack.identity);
  return result;
}

/* Reads the whole pack and compares every hash. */
JNIEXPORT void JNICALL Java_dev_handheld_FlashNative_verify(JNIEnv* env, jclass type, jlong value) {
  (void)type;
  failed(env, hh_flash_pack_verify(from(value)->pack));
}

typedef struct {
  JNIEnv* env;
  jobject listener;
  jmethodID token;
} generation;

static int on_token(uint32_t token, void* user) {
  generation* state = user;
  jboolean go_on = (*state->env)->CallBooleanMethod(state->env, state->listener, state->token, (jint)token);
  return (*state->env)->ExceptionCheck(state->env) || !go_on;
}

JNIEXPORT void JNICALL Java_dev_handheld_FlashNative_generate(JNIEnv* env, jclass type, jlong value, jintArray prompt,
                                                             jint max_new, jobject listener) {
  (void)type;
  generation state = {env, listener, NULL};
  state.token = (*env)->GetMethodID(env, (*env)->GetObjectClass(env, listener), "onToken", "(I)Z");
  jint* tokens = state.token ? (*env)->GetIntArrayElements(env, prompt, NULL) : NULL;
  if (!tokens) return;
  hh_flash_status status =
      hh_flash_model_generate(from(value)->model, (const uint32_t*)tokens, (size_t)(*env)->GetArrayLength(env, prompt),
                              (size_t)max_new, on_token, &state);
  /* What the listener threw goes first. */
  if (!(*env)->ExceptionCheck(env)) failed(env, status);
  (*env)->ReleaseIntArrayElements(env, prompt, tokens, JNI_ABORT);
}

JNIEXPORT void JNICALL Java_dev_handheld_FlashNative_cancel(JNIEnv* env, jclass type, jlong value) {
  (void)env;
  (void)type;
  hh_flash_model_cancel(from(value)->model);
}

JNIEXPORT void JNICALL Java_dev_handheld_FlashNative_resume(JNIEnv* env, jclass type, jlong value) {
  (void)type;
  failed(env, hh_flash_model_resume(from(value)->model));
}

JNIEXPORT void JNICALL Java_dev_handheld_FlashNative_reset(JNIEnv* env, jclass type, jlong value) {
  (void)type;
  failed(env, hh_flash_model_reset(from(value)->model));
}

/* position, budget_bytes, held_bytes, bytes_read, neurons_selected, cache_hits: since the last reset. */
JNIEXPORT jlongArray JNICALL Java_dev_handheld_FlashNative_stats(JNIEnv* env, jclass type, jlong value) {
  (void)type;
  hh_flash_decode_stats stats = {.struct_bytes = sizeof(stats)};
  stats.session.struct_bytes = sizeof(stats.session);
  if (failed(env, hh_flash_model_stats(from(value)->model, &stats))) return NULL;
  const jlong fields[] = {
      stats.position,
      (jlong)stats.session.budget_bytes,
      (jlong)stats.session.held_bytes,
      (jlong)stats.session.bytes_read,
      (jlong)stats.session.neurons_selected,
      (jlong)stats.session.cache_hits,
  };
  jsize count = (jsize)(sizeof(fields) / sizeof(fields[0]));
  jlongArray result = (*env)->NewLongArray(env, count);
  if (result) (*env)->SetLongArrayRegion(env, result, 0, count, fields);
  return result;
}
