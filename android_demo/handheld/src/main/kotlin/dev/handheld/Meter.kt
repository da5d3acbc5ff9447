package dev.handheld

import java.io.File
import java.io.IOException

/** What a measurement reads beside the clock. Null is unknown. */
interface Meter {
    /** State of the device now. */
    fun conditions(): Profile.Conditions
}

/** This process' memory, in bytes, from the kernel: resident set (`rss` in profiles). */
object ProcessMemory {
    /** Now; null where the kernel does not say. */
    fun residentBytes(): Long? = status("VmRSS:")

    /**
     * Starts to watch for the highest resident set; the result gives it, at any time after. Where the kernel does not
     * let its own mark be reset, a peak below the mark of before is unknown, and null.
     */
    fun watchPeak(): () -> Long? {
        val reset = try {
            File("/proc/self/clear_refs").writeText("5")
            true
        } catch (error: IOException) {
            false
        }
        val before = if (reset) 0 else status("VmHWM:") ?: 0
        return { status("VmHWM:")?.takeIf { it > before } }
    }

    private fun status(key: String): Long? = try {
        File("/proc/self/status").useLines { lines ->
            lines.firstOrNull { it.startsWith(key) }?.filter { it.isDigit() }?.toLongOrNull()?.times(1024)
        }
    } catch (error: IOException) {
        null
    }
}

/** Runs `body`; gives its result and the nanoseconds that it took. */
inline fun <T> timed(body: () -> T): Pair<T, Long> {
    val start = System.nanoTime()
    val value = body()
    return value to System.nanoTime() - start
}
