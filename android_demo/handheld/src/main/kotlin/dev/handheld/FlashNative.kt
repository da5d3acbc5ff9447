package dev.handheld

/** `src/main/cpp/flash_jni.c`. Handles are of [open], until [close]. Failures throw [FlashError]. */
internal object FlashNative {
    init {
        System.loadLibrary("handheld_flash_jni")
    }

    /** Called by name from native code. False ends the generation. */
    fun interface TokenListener {
        fun onToken(token: Int): Boolean
    }

    @JvmStatic external fun open(path: ByteArray, budgetBytes: Long, contextTokens: Int, threads: Int, mode: Int): Long

    @JvmStatic external fun close(handle: Long)

    @JvmStatic external fun info(handle: Long): LongArray

    @JvmStatic external fun identity(handle: Long): ByteArray

    @JvmStatic external fun verify(handle: Long)

    @JvmStatic external fun generate(handle: Long, prompt: IntArray, maxNew: Int, listener: TokenListener)

    @JvmStatic external fun cancel(handle: Long)

    @JvmStatic external fun resume(handle: Long)

    @JvmStatic external fun reset(handle: Long)

    @JvmStatic external fun stats(handle: Long): LongArray
}
