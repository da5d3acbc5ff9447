package dev.handheld

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** An element's type in the tensors of a streamed artefact, by its name in manifests. */
enum class StreamDtype(val bytesEach: Int) {
    FLOAT32(4), FLOAT16(2);

    companion object {
        fun of(name: String): StreamDtype = if (name == Manifest.FLOAT16) FLOAT16 else FLOAT32
    }
}

/** Room for frames (count, channels, rows, width), contiguous, in a direct buffer in native order. */
class StreamFrames(val count: Int, val channels: Int, val rows: Int, val width: Int, val dtype: StreamDtype) {
    val bytes: ByteBuffer = direct(count * channels * rows * width * dtype.bytesEach)

    // Bulk copies go through these views' positions: no buffer is made for a copy.
    private val view: ByteBuffer = bytes.duplicate()
    private val source: ByteBuffer = bytes.duplicate()
    private val floats = bytes.asFloatBuffer()
    private val halves = bytes.asShortBuffer()
    private val rowBytes = width * dtype.bytesEach

    operator fun get(index: Int): Float =
        if (dtype == StreamDtype.FLOAT32) floats.get(index) else halfToFloat(halves.get(index))

    operator fun set(index: Int, value: Float) {
        if (dtype == StreamDtype.FLOAT32) floats.put(index, value) else halves.put(index, floatToHalf(value))
    }

    /** `window` rows from `row` on of one plane; a plane is one channel of one frame. Until the next call. */
    internal fun plane(plane: Int, row: Int = 0, window: Int = rows): ByteBuffer =
        span((plane * rows + row) * rowBytes, window * rowBytes)

    /** `count` whole frames from `first` on. Until the next call. */
    internal fun whole(first: Int, count: Int): ByteBuffer {
        val each = channels * rows * rowBytes
        return span(first * each, count * each)
    }

    private fun span(start: Int, size: Int): ByteBuffer {
        view.clear()
        view.position(start)
        view.limit(start + size)
        return view
    }

    /** Takes `frames` frames of another one, from its frame `first` and row `row` on, to its own frame `at`. */
    internal fun take(from: StreamFrames, first: Int, frames: Int, row: Int, at: Int) {
        if (from.rows == rows) {
            whole(at, frames).put(from.whole(first, frames))
            return
        }
        for (plane in 0 until frames * channels) {
            plane(at * channels + plane).put(from.plane(first * channels + plane, row, rows))
        }
    }

    /** Copies one of its frames to the place of another. */
    internal fun repeat(frame: Int, at: Int) {
        val each = channels * rows * rowBytes
        source.clear()
        source.position(frame * each)
        source.limit((frame + 1) * each)
        whole(at, 1).put(source)
    }

    internal companion object {
        fun direct(size: Int): ByteBuffer = ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder())
    }
}

/** Puts all of another buffer at the end of this one. Gives this one, to be read from its start. */
internal fun ByteBuffer.putLast(from: ByteBuffer): ByteBuffer {
    position(capacity() - from.capacity())
    put(from.duplicate().apply { clear() })
    clear()
    return this
}

/**
 * Decoded frames, final: RGB, nominally in [-1, 1]. They are there until the call that gave them returns; take what is
 * wanted of them before.
 */
class DecodedFrames internal constructor(
    private val frames: StreamFrames, private val first: Int, val count: Int, private val row: Int, val height: Int,
) {
    val width: Int get() = frames.width

    /** One frame as `0xAARRGGBB`, row by row, opaque; values beyond [-1, 1] are clamped, NaN is black. */
    fun argb(frame: Int, into: IntArray = IntArray(height * width)): IntArray {
        val red = start(frame, 0)
        val green = start(frame, 1)
        val blue = start(frame, 2)
        for (place in 0 until height * width) {
            into[place] = argbOf(frames[red + place], frames[green + place], frames[blue + place])
        }
        return into
    }

    /** Copies into a clip (channels, total, height, width), row-major, of which these frames begin at `at`. */
    fun copyInto(clip: FloatArray, total: Int, at: Int) {
        val plane = height * width
        for (frame in 0 until count) {
            for (channel in 0 until frames.channels) {
                val from = start(frame, channel)
                val to = (channel * total + at + frame) * plane
                for (place in 0 until plane) clip[to + place] = frames[from + place]
            }
        }
    }

    private fun start(frame: Int, channel: Int): Int =
        (((first + frame) * frames.channels + channel) * frames.rows + row) * width
}
