package dev.handheld

import java.io.Closeable
import java.io.File

/** What the flash engine refuses: the name of its status, such as `HH_FLASH_BUDGET`, and its message. */
class FlashError internal constructor(val status: String, message: ByteArray) :
    Exception("$status: ${String(message, Charsets.UTF_8)}") {

    val isCancelled: Boolean get() = status == "HH_FLASH_CANCELLED"
}

/** How a language model is to run. */
data class FlashOptions(
    /** Hard limit of all that the model holds. */
    val budgetBytes: Long,
    val mode: Mode = Mode.EXACT,
    /** Room of the key-value cache; 0 is the engine's default. */
    val contextTokens: Int = 0,
    /** 0 is the engine's default. */
    val threads: Int = 0,
) {
    /** `hh_flash_mode`: every neuron; every neuron that fires; those that the pack's selector expects. */
    enum class Mode(internal val id: Int) { DENSE(0), EXACT(1), SELECTED(2) }
}

/**
 * A language model that reads its feed-forward weights from storage, over the engine's C interface.
 *
 * Calls wait for each other; only [cancel] does not. Throws [FlashError], and `UnsatisfiedLinkError` where the native
 * library is not in the app.
 */
class FlashModel(val folder: File, val options: FlashOptions) : Closeable {
    private val calls = Any()
    private val handles = Any() // held for moments only: by cancel, and while the handle changes
    private var handle: Long = FlashNative.open(
        folder.path.toByteArray(), options.budgetBytes, options.contextTokens, options.threads, options.mode.id,
    )

    val vocabulary: Int

    /** The largest context. */
    val maxPositions: Int

    /** Of the feed-forward weights. */
    val precision: String

    /** Tokens that end a text. */
    val endTokens: Set<Int>

    /** SHA-256 of the pack's header, which holds the hashes of all the rest. */
    val identity: String = FlashNative.identity(handle).joinToString("") { "%02x".format(it) }

    init {
        val info = FlashNative.info(handle)
        vocabulary = info[0].toInt()
        maxPositions = info[1].toInt()
        precision = DTYPES[info[2].toInt()] ?: "unknown"
        endTokens = info.drop(3).map { it.toInt() }.toSet()
    }

    /** Reads the pack whole and compares every hash. Slow: once after it was copied is enough. */
    fun verify() = call { FlashNative.verify(it) }

    /**
     * Appends the prompt to the text, then the likeliest token, at most `maxNew` times. `listener` gets each token;
     * false ends the generation. The last token that it got is not part of the text yet: a following prompt starts
     * with it.
     */
    fun generate(prompt: IntArray, maxNew: Int, listener: (Int) -> Boolean) = call {
        FlashNative.resume(it)
        FlashNative.generate(it, prompt, maxNew) { token -> listener(token) }
    }

    /**
     * Ends the generation that runs, within the token it is at: it throws a [FlashError] that
     * [FlashError.isCancelled].
     */
    fun cancel() = synchronized(handles) { if (handle != 0L) FlashNative.cancel(handle) }

    /** Forgets the text and sets the counters to zero. */
    fun reset() = call { FlashNative.reset(it) }

    /** Tokens of the text, and what the engine did since the last [reset]. */
    fun stats(): Stats = call { handle ->
        FlashNative.stats(handle).let { Stats(it[0].toInt(), it[2], Profile.Flash(it[1], it[3], it[4], it[5])) }
    }

    data class Stats(val position: Int, val heldBytes: Long, val flash: Profile.Flash)

    override fun close() {
        cancel()
        synchronized(calls) {
            synchronized(handles) {
                if (handle != 0L) FlashNative.close(handle)
                handle = 0
            }
        }
    }

    private fun <T> call(body: (Long) -> T): T = synchronized(calls) {
        check(handle != 0L) { "the model is closed" }
        body(handle)
    }

    private companion object {
        /** `hh_flash_dtype`. */
        val DTYPES = mapOf(1 to "fp16", 2 to "int8", 3 to "int4", 4 to "fp32", 5 to "int4m")
    }
}
