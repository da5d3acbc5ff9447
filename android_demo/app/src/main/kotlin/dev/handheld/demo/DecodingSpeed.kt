package dev.handheld.demo

/** Frames per second of decoding, without the time that the decoder waits for the player. */
class DecodingSpeed {
    private var busyNs = 0L
    private var since = System.nanoTime()

    /** So far. */
    var frames = 0L
        private set

    /** From the beginning to the first frame. */
    var firstNs = 0L
        private set

    val perSecond: Double get() = 1e9 * frames / maxOf(1, busyNs)

    fun decoded(count: Int) {
        busyNs += System.nanoTime() - since
        if (frames == 0L) firstNs = busyNs
        frames += count
    }

    /** The decoder computes again. */
    fun goesOn() {
        since = System.nanoTime()
    }
}
