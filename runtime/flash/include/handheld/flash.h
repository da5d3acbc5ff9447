/*
 * The flash engine's C interface: feed-forward layers of a language model, or a whole model, computed from a pack on
 * storage, within a memory budget. Swift, JNI, an ONNX Runtime op or an ExecuTorch kernel use this header as it is.
 *
 *   hh_flash_pack* pack = NULL;
 *   hh_flash_session* session = NULL;
 *   hh_flash_session_options options;
 *   hh_flash_session_options_init(&options);
 *   options.budget_bytes = 64u << 20;
 *   if (hh_flash_pack_open("model.flash", HH_FLASH_DIRECT_IO, &pack) != HH_FLASH_OK ||
 *       hh_flash_session_open(pack, &options, &session) != HH_FLASH_OK) puts(hh_flash_last_error());
 *   ...
 *   hh_flash_session_ffn(session, layer, HH_FLASH_SELECTED, x, NULL, 0, y);
 *   ...
 *   hh_flash_session_close(session);
 *   hh_flash_pack_close(pack);
 *
 * Errors: every function that can fail returns a status and leaves its outputs as they were, except where it says
 * otherwise. Nothing aborts, throws across this boundary, reads the environment or prints.
 *
 * Ownership: what an `_open` gives is closed once by the matching `_close`; closing NULL does nothing. A session
 * or model keeps what it needs of its pack, so the two may be closed in either order. Pointers passed in are only read (or,
 * for outputs, written) during the call.
 *
 * Threads: a pack may be used from any number of threads at once. A session or model serves one call at a time, from any
 * thread; only its _cancel may be called while another call on the same handle runs. Closing must not overlap any
 * other call on that handle. There is no global mutable state.
 */
#ifndef HANDHELD_FLASH_H
#define HANDHELD_FLASH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define HH_FLASH_API __attribute__((visibility("default")))
#else
#define HH_FLASH_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hh_flash_status {
  HH_FLASH_OK = 0,
  HH_FLASH_INVALID_ARGUMENT = 1, /* a null pointer, an index or an option outside of what is allowed */
  HH_FLASH_NOT_FOUND = 2,        /* the pack or a file of it is missing or cannot be opened */
  HH_FLASH_BAD_PACK = 3,         /* not a pack, of another version, truncated or altered */
  HH_FLASH_IO = 4,               /* the system refused a read, or the file shrank while open */
  HH_FLASH_BUDGET = 5,           /* the memory budget is below the floor; the message names it */
  HH_FLASH_OUT_OF_MEMORY = 6,    /* the system refused memory or threads */
  HH_FLASH_CANCELLED = 7,        /* hh_flash_session_cancel or hh_flash_model_cancel was called */
  HH_FLASH_UNSUPPORTED = 8,      /* this machine or this pack does not have what was asked for */
  HH_FLASH_INTERNAL = 9          /* a defect of the engine */
} hh_flash_status;

typedef enum hh_flash_dtype {
  HH_FLASH_FP16 = 1,
  HH_FLASH_INT8 = 2,
  HH_FLASH_INT4 = 3,
  HH_FLASH_FP32 = 4,
  HH_FLASH_INT4M = 5 /* int4 with a minimum per group */
} hh_flash_dtype;

typedef enum hh_flash_activation { HH_FLASH_RELU = 1, HH_FLASH_SILU = 2 } hh_flash_activation;

typedef enum hh_flash_selector {
  HH_FLASH_SELECTOR_NONE = 0,
  HH_FLASH_SELECTOR_LOW_RANK = 1, /* score = B (A x): two small matrices */
  HH_FLASH_SELECTOR_TERNARY = 2,  /* score = |activation(gate) * up| * importance, expected from two-bit rows */
  HH_FLASH_SELECTOR_HOT = 3       /* selects nothing: what is resident is computed, and nothing is read */
} hh_flash_selector;

typedef enum hh_flash_mode {
  HH_FLASH_DENSE = 0,   /* every neuron; those that are not resident are read and not kept */
  HH_FLASH_EXACT = 1,   /* every neuron with |h| * importance over the layer's threshold, and no other; none is missed */
  HH_FLASH_SELECTED = 2 /* the neurons given, or else the selector's, and (HH_FLASH_COMPUTE_RESIDENT) all resident ones */
} hh_flash_mode;

/* The arithmetic to use. AUTO takes the best of what the processor has. */
typedef enum hh_flash_kernels {
  HH_FLASH_KERNELS_AUTO = 0,
  HH_FLASH_KERNELS_PORTABLE = 1,
  HH_FLASH_KERNELS_AVX2 = 2,
  HH_FLASH_KERNELS_AVX512 = 3, /* F, BW, VL, VNNI and VBMI */
  HH_FLASH_KERNELS_NEON = 4
} hh_flash_kernels;

/* Flags of hh_flash_pack_open. */
enum {
  /* Reads bypass the page cache (O_DIRECT, F_NOCACHE) where the file system can; info.direct_io says if it does. */
  HH_FLASH_DIRECT_IO = 1
};

/* Flags of hh_flash_session_options.techniques. */
enum {
  HH_FLASH_BUNDLING = 1,        /* off: gate, up and down parts are read each on its own, to measure the difference */
  HH_FLASH_MERGING = 2,         /* reads closer than merge_gap_bytes become one */
  HH_FLASH_COMPUTE_RESIDENT = 4, /* selected mode computes every resident neuron: no read, and less loss */
  HH_FLASH_IO_URING = 8, /* reads go through Linux' io_uring where it has and allows one; never on Android */
  HH_FLASH_NEIGHBOURS = 16, /* selected mode: within 16 KiB where a neuron is read anyway, miss_weight holds no other
                              back, as reading on costs little; with select_share these come on top of the share */
  HH_FLASH_INT8_ACTIVATIONS = 32, /* int8, int4 and int4m rows that are multiplied with activations take them rounded to
                              8 bits, with a scale for as many of them as a scale of the rows has, and multiply
                              integers; what is not quantised is computed in fp32 all the same */
  HH_FLASH_INT8_HIDDEN = 64, /* int8, int4 and int4m: h times a scale of the neuron's down part is rounded to 8 bits, of
                              int8 to 12, with one step for that group of up to 32 neurons, and integers are added up;
                              results depend, within that rounding, on which neurons are computed together */
  HH_FLASH_GATE_FIRST = 128 /* ternary selector of gated layers, with a threshold, where rows have 256 bytes: a neuron that
                              its gate row keeps under it, were its up product four times the root mean square of others',
                              is not selected, and its up row not looked at; with miss_weight and COMPUTE_RESIDENT, nor is
                              that of a neuron in memory, selected as if that product were the root mean square */
};

/* A window that keeps as much as the budget holds, the oldest going first. */
#define HH_FLASH_WINDOW_UNLIMITED UINT32_MAX
/* As many pinned neurons as the budget holds. */
#define HH_FLASH_PIN_ALL UINT32_MAX
/* Four fifths of the neurons that the budget holds, as the rest is the window's; or all of them where it holds all. */
#define HH_FLASH_PIN_MOST (UINT32_MAX - 1)

typedef struct hh_flash_info {
  uint32_t struct_bytes; /* set by the caller to sizeof(hh_flash_info) */
  uint32_t layers;
  uint32_t d_model;
  uint32_t d_ff;
  uint32_t activation; /* hh_flash_activation */
  uint32_t gated;      /* 1: activation(gate x) * (up x); 0: activation(up x + bias) */
  uint32_t dtype;      /* hh_flash_dtype */
  uint32_t group_size; /* weights per scale; 0 for fp32 and fp16 */
  uint32_t selector;   /* hh_flash_selector */
  uint32_t direct_io;  /* 1 when reads bypass the page cache */
  uint32_t read_alignment_bytes;
  uint32_t bundle_bytes; /* stride of a neuron in its group, and its size in the table */
  uint64_t file_bytes;   /* of neurons.bin */
  uint64_t selector_bytes;
  uint8_t identity[32]; /* SHA-256 of the header: names this pack */
} hh_flash_info;

typedef struct hh_flash_session_options {
  uint32_t struct_bytes; /* set by hh_flash_session_options_init */
  uint32_t techniques;   /* flags above; default all */
  uint64_t budget_bytes; /* hard limit of what the session holds: table, buffers, bookkeeping, selector. No default */
  uint32_t reader_threads;   /* 1..256, default 16: reads under way, by as many threads or through io_uring, each with a
                                buffer; small reads of selected mode share buffers, so that up to four times as many are */
  uint32_t compute_threads;  /* 1..64, the calling thread included; default 2 */
  uint32_t window_tokens;    /* a neuron stays until it was not selected in this many tokens; 0 keeps none; default 5 */
  uint32_t pinned_neurons;   /* per layer, the first of the pack's order, read at open; default 0 */
  uint32_t merge_gap_bytes;  /* default 8 KiB */
  uint32_t chunk_bytes;      /* largest read and size of each reader's buffer; default 128 KiB, raised to fit a bundle */
  uint32_t kernels;          /* hh_flash_kernels */
  uint32_t selector;         /* NONE: the pack's own; HOT: the resident set only */
  float select_share;        /* 0: the selector's thresholds, which with HH_FLASH_COMPUTE_RESIDENT pinned neurons are
                                not compared with; else the share (0, 1] of neurons with the best scores */
  float miss_weight;         /* (0, 1], default 1: what the score of a neuron that is not resident counts for, so that
                                one that has to be read must matter more than one that is there */
} hh_flash_session_options;

typedef struct hh_flash_stats {
  uint32_t struct_bytes; /* set by the caller to sizeof(hh_flash_stats) */
  uint32_t kernels;      /* hh_flash_kernels in use */
  uint64_t budget_bytes;
  uint64_t held_bytes;      /* now: everything allocated but the table rows that are not in use */
  uint64_t held_peak_bytes; /* its highest value; never above budget_bytes */
  uint64_t table_rows;      /* neurons that the table can hold, over all layers */
  uint64_t layers_computed;
  uint64_t reads;           /* read calls completed */
  uint64_t bytes_read;      /* alignment and merged gaps included */
  uint64_t bytes_wanted;    /* of the bundles asked for */
  uint64_t neurons_selected; /* in dense and exact mode all, once for the tokens that are computed together */
  uint64_t cache_hits;       /* those of them that were resident */
  uint64_t neurons_loaded;
  uint64_t neurons_streamed; /* computed from a read buffer and not kept */
  uint64_t neurons_evicted;
  uint64_t neurons_computed;
  uint64_t prefetched; /* neurons that a prefetch, or reading ahead, began to load */
  uint64_t wait_ns;    /* the caller waited for reads, or woke the threads that do them; selected mode begins its reads
                          in compute_ns */
  uint64_t read_ns;    /* inside read calls, summed over reader threads */
  uint64_t busy_ns;    /* at least one read was under way: bytes_read over this is what the storage gave, or less, as
                          reads that a caller began through its io_uring end when it comes to wait for them */
  uint64_t table_ns;   /* table management and read planning */
  uint64_t select_ns;
  uint64_t compute_ns;
} hh_flash_stats;

typedef struct hh_flash_pack hh_flash_pack;
typedef struct hh_flash_session hh_flash_session;

/* The message of the last failure on the calling thread; "" when there was none. Valid until the next call on this
 * thread. Never NULL. Thread-safe. */
HH_FLASH_API const char* hh_flash_last_error(void);

/* The status' name, such as "HH_FLASH_BUDGET". Static storage. Thread-safe. */
HH_FLASH_API const char* hh_flash_status_name(hh_flash_status status);

/* Opens the pack in folder `path` (UTF-8). Checks the header's hash, all bounds and the sizes of both files; reads no
 * weights. `flags`: HH_FLASH_DIRECT_IO or 0. On success *pack is owned by the caller. */
HH_FLASH_API hh_flash_status hh_flash_pack_open(const char* path, uint32_t flags, hh_flash_pack** pack);

/* Thread-safe with respect to sessions of the pack, which live on. */
HH_FLASH_API void hh_flash_pack_close(hh_flash_pack* pack);

/* Fills *info, whose struct_bytes the caller has set. Thread-safe. */
HH_FLASH_API hh_flash_status hh_flash_pack_info(const hh_flash_pack* pack, hh_flash_info* info);

/* Reads both files whole and compares every SHA-256: HH_FLASH_BAD_PACK names what was altered. Thread-safe. */
HH_FLASH_API hh_flash_status hh_flash_pack_verify(const hh_flash_pack* pack);

/* The smallest budget_bytes with which these options open a session. Thread-safe. */
HH_FLASH_API hh_flash_status hh_flash_pack_floor(const hh_flash_pack* pack, const hh_flash_session_options* options,
                                                 uint64_t* floor_bytes);

/* Sets every option to its default, struct_bytes included. Thread-safe. */
HH_FLASH_API void hh_flash_session_options_init(hh_flash_session_options* options);

/* Opens a session: allocates all it will ever hold, starts its threads, reads the pinned neurons. */
HH_FLASH_API hh_flash_status hh_flash_session_open(const hh_flash_pack* pack, const hh_flash_session_options* options,
                                                   hh_flash_session** session);

/* Cancels what runs, waits for the session's threads and frees it. */
HH_FLASH_API void hh_flash_session_close(hh_flash_session* session);

/* One feed-forward layer for one token: x[d_model] -> y[d_model], down bias included. Every call counts as a token of
 * that layer, in order. `neurons` (ids of the checkpoint, any order, repeats count once) is allowed in selected mode
 * only; NULL there means the selector. y is unspecified after a failure; x and y must not overlap. */
HH_FLASH_API hh_flash_status hh_flash_session_ffn(hh_flash_session* session, uint32_t layer, hh_flash_mode mode,
                                                  const float* x, const uint32_t* neurons, size_t neuron_count,
                                                  float* y);

/* Starts to load what the layer's next token is expected to need and returns: `neurons`, or, when NULL, the selector's
 * choice for x[d_model]. The layer's next hh_flash_session_ffn waits for it. One prefetch is under way at a time: a
 * second one waits for the first. A read that fails costs time only: the layer's call reads again, and reports it. */
HH_FLASH_API hh_flash_status hh_flash_session_prefetch(hh_flash_session* session, uint32_t layer, const float* x,
                                                       const uint32_t* neurons, size_t neuron_count);

/* The selector's choice for x[d_model], as ids of the checkpoint in the pack's order. Writes at most `capacity` ids and
 * the whole number to *neuron_count. Reads nothing and changes no state. */
HH_FLASH_API hh_flash_status hh_flash_session_select(hh_flash_session* session, uint32_t layer, const float* x,
                                                     uint32_t* neurons, size_t capacity, size_t* neuron_count);

/* The ids of the neurons that a layer holds, in table order. Writes at most `capacity`, the whole number to
 * *neuron_count. Waits for a prefetch of that layer. */
HH_FLASH_API hh_flash_status hh_flash_session_resident(hh_flash_session* session, uint32_t layer, uint32_t* neurons,
                                                       size_t capacity, size_t* neuron_count);

/* From now on every call on the session returns HH_FLASH_CANCELLED, the running one as soon as its reads under way
 * end. May be called from any thread at any time. */
HH_FLASH_API void hh_flash_session_cancel(hh_flash_session* session);

/* Takes a cancellation back. The resident neurons are still valid. */
HH_FLASH_API hh_flash_status hh_flash_session_resume(hh_flash_session* session);

/* Forgets the window (pinned neurons stay) and sets all counters to zero: a new text begins. */
HH_FLASH_API hh_flash_status hh_flash_session_reset(hh_flash_session* session);

/* Fills *stats, whose struct_bytes the caller has set. */
HH_FLASH_API hh_flash_status hh_flash_session_stats(hh_flash_session* session, hh_flash_stats* stats);

/* A whole model: a session, and attention, norms, embedding and head, which are resident. The pack has their tensors
 * (`model.*`, docs/flash.md). */

typedef struct hh_flash_model_options {
  uint32_t struct_bytes;   /* set by hh_flash_model_options_init */
  uint32_t mode;           /* hh_flash_mode of every feed-forward layer; default HH_FLASH_EXACT */
  uint32_t context_tokens; /* room of the key-value cache, allocated at open; 0 (default): 512, or all positions that
                              the model has if they are fewer */
  uint32_t kv_dtype;       /* of the key-value cache: HH_FLASH_FP32 (default) or HH_FLASH_FP16, half of the bytes */
  uint32_t read_ahead;     /* 1 (default): dense and exact mode read what the next layer will need under this layer's
                              arithmetic; 0: not */
  uint32_t prefetch;       /* 1 (default): selected mode chooses a layer's neurons before the layer's attention, as if
                              that added what it added to the token before, and reads them under it; not in the first
                              tenth of the layers; 0: after attention */
  hh_flash_session_options session; /* budget_bytes covers the whole model. window_tokens is UNLIMITED by default here,
                                       pinned_neurons HH_FLASH_PIN_MOST, which outside selected mode is all that fit,
                                       miss_weight 0.35 */
} hh_flash_model_options;

#define HH_FLASH_MAX_EOS 16

typedef struct hh_flash_model_info {
  uint32_t struct_bytes; /* set by the caller to sizeof(hh_flash_model_info) */
  uint32_t vocab;
  uint32_t max_positions; /* the largest context_tokens */
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t eos_count;
  uint32_t eos[HH_FLASH_MAX_EOS]; /* tokens that end a text */
  uint64_t weights_bytes;         /* resident: embedding, attention, norms, head */
} hh_flash_model_info;

typedef struct hh_flash_decode_stats {
  uint32_t struct_bytes;   /* set by the caller to sizeof(hh_flash_decode_stats) */
  uint32_t position;       /* tokens in the key-value cache */
  uint64_t tokens;         /* decoded since the last reset, those of prompts included */
  uint64_t weights_bytes;  /* held: embedding, attention, norms, head */
  uint64_t kv_bytes;       /* held: the key-value cache */
  uint64_t total_ns;       /* inside decode and generate, callbacks not included */
  uint64_t attention_ns;   /* embedding, norms, projections, attention */
  uint64_t head_ns;
  uint64_t overhead_ns;    /* total_ns less attention_ns, head_ns and session's wait_ns, select_ns and compute_ns */
  hh_flash_stats session;  /* its budget_bytes and held bytes are those of the whole model */
} hh_flash_decode_stats;

typedef struct hh_flash_model hh_flash_model;

/* Called with each new token, on the calling thread. Anything but 0 ends the generation. Must not call the model. */
typedef int (*hh_flash_token_callback)(uint32_t token, void* user);

/* Fills *info, whose struct_bytes the caller has set. HH_FLASH_UNSUPPORTED: the pack holds feed-forward layers only.
 * Thread-safe. */
HH_FLASH_API hh_flash_status hh_flash_pack_model_info(const hh_flash_pack* pack, hh_flash_model_info* info);

/* Sets every option to its default, struct_bytes included. Thread-safe. */
HH_FLASH_API void hh_flash_model_options_init(hh_flash_model_options* options);

/* The smallest session.budget_bytes with which these options open a model. Thread-safe. */
HH_FLASH_API hh_flash_status hh_flash_model_floor(const hh_flash_pack* pack, const hh_flash_model_options* options,
                                                  uint64_t* floor_bytes);

/* Opens a model: reads its resident tensors (once for all models of a pack handle, though each counts them in its
 * budget), allocates all it will ever hold and starts its threads. */
HH_FLASH_API hh_flash_status hh_flash_model_open(const hh_flash_pack* pack, const hh_flash_model_options* options,
                                                 hh_flash_model** model);

/* Cancels what runs, waits for the model's threads and frees it. */
HH_FLASH_API void hh_flash_model_close(hh_flash_model* model);

/* Appends tokens[count] to the text and writes logits[vocab] of what follows the last one. count is at least 1. After
 * a failure the text is what it was before the call. Up to 16 tokens are computed together, and what
 * is not resident is read once for them; a selected mode is exact mode for a call with more than one token, unless its
 * selector is HH_FLASH_SELECTOR_HOT. */
HH_FLASH_API hh_flash_status hh_flash_model_decode(hh_flash_model* model, const uint32_t* tokens, size_t count,
                                                   float* logits);

/* The same with logits[count][vocab], a row for each token. */
HH_FLASH_API hh_flash_status hh_flash_model_decode_all(hh_flash_model* model, const uint32_t* tokens, size_t count,
                                                       float* logits);

/* Appends prompt[count], then the likeliest token, at most `max_new` times, which is 1 or more; ends early after a token of the model's
 * eos, or when the callback says so. The last token given to the callback is not part of the text yet: a following
 * call starts with it. `callback` may not be NULL; `user` is passed to it. After a failure the text is the prompt and
 * the tokens given to the callback but the last, or, when there was none, what it was before the call. */
HH_FLASH_API hh_flash_status hh_flash_model_generate(hh_flash_model* model, const uint32_t* prompt, size_t count,
                                                     size_t max_new, hh_flash_token_callback callback, void* user);

/* Shortens the text to its first `tokens` tokens. Resident neurons stay. */
HH_FLASH_API hh_flash_status hh_flash_model_truncate(hh_flash_model* model, size_t tokens);

/* As hh_flash_session_resident. */
HH_FLASH_API hh_flash_status hh_flash_model_resident(hh_flash_model* model, uint32_t layer, uint32_t* neurons,
                                                     size_t capacity, size_t* neuron_count);

/* As those of a session; a reset empties the text. A cancelled call ends within the token it is at. */
HH_FLASH_API void hh_flash_model_cancel(hh_flash_model* model);
HH_FLASH_API hh_flash_status hh_flash_model_resume(hh_flash_model* model);
HH_FLASH_API hh_flash_status hh_flash_model_reset(hh_flash_model* model);

/* Fills *stats, whose struct_bytes the caller has set. */
HH_FLASH_API hh_flash_status hh_flash_model_stats(hh_flash_model* model, hh_flash_decode_stats* stats);

#ifdef __cplusplus
}
#endif

#endif
