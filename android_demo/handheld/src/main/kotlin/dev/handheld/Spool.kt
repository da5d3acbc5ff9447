package dev.handheld

import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer

/** Where a pass reads its clip from: frames (count, channels, height, width). */
interface FrameSource {
    val count: Long

    /** Reads `frames` frames from `first` on, rows `row` to `row + into.rows`, to the frames `at` and on of `into`. */
    fun read(first: Long, frames: Int, row: Int, into: StreamFrames, at: Int)
}

/** Latents (1, C, T', H', W'), row-major, as a source; `repeated` > [latentFrames] begins them again as often as it takes. */
class LatentFrames(private val values: FloatArray, private val shape: List<Long>, repeated: Long? = null) : FrameSource {
    private val channels: Int
    private val height: Int
    private val width: Int

    /** What there is before anything is repeated. */
    val latentFrames: Int
    override val count: Long

    init {
        if (shape.size != 5 || shape[0] != 1L || shape.fold(1L, Long::times) != values.size.toLong() || values.isEmpty()) {
            throw BundleError(
                BundleError.Kind.TENSORS,
                "Latents are ${values.size} values of shape $shape; (1, C, T, H, W) with a frame or more is wanted.",
            )
        }
        channels = shape[1].toInt()
        latentFrames = shape[2].toInt()
        height = shape[3].toInt()
        width = shape[4].toInt()
        count = repeated ?: latentFrames.toLong()
    }

    /** The same latents as a model takes them, whose kind is `given`. Throws [BundleError] as [Manifest.TensorSpec.taken]. */
    fun taken(spec: Manifest.TensorSpec, given: LatentKind): LatentFrames =
        if (given == spec.latentKind) this else LatentFrames(spec.taken(values, shape, given), shape, count)

    /** Refuses latents that are not `shape`, (C, H', W'). */
    internal fun check(shape: List<Int>) {
        if (shape != listOf(channels, height, width)) {
            throw DecoderError(
                "Latents of ${listOf(channels, height, width)} were given; this artefact takes $shape (channels, height, " +
                    "width). Another height or width is another export.",
            )
        }
    }

    override fun read(first: Long, frames: Int, row: Int, into: StreamFrames, at: Int) {
        val window = into.rows * width
        for (frame in 0 until frames) {
            val time = ((first + frame) % latentFrames).toInt()
            for (channel in 0 until channels) {
                val from = ((channel * latentFrames + time) * height + row) * width
                val to = ((at + frame) * channels + channel) * window
                for (place in 0 until window) into[to + place] = values[from + place]
            }
        }
    }
}

/**
 * A clip's frames between two passes, in a file without a name: written by rows, read by windows, gone when it is closed
 * or the process ends. Plain reads and writes: mapped pages would count as memory.
 *
 * @throws DecoderError for a disk that is full.
 */
internal class Spool(private val shape: List<Int>, private val dtype: StreamDtype, private val folder: File) :
    FrameSource, Closeable {
    override var count = 0L
        private set
    private val file = try {
        val path = File.createTempFile("handheld-", ".spool", folder)
        RandomAccessFile(path, "rw").also { path.delete() }
    } catch (error: IOException) {
        throw DecoderError("$folder cannot be written: ${error.message}. Frames between passes are kept there.", error)
    }
    private val channel = file.channel

    /** Writes rows `from` to `from + rows` of frames of `frames` to row `row` of the clip's frames `at` and on. */
    fun write(frames: StreamFrames, first: Int, count: Int, from: Int, rows: Int, at: Long, row: Int) {
        each(frames, first, count, from, rows, at, row) { bytes, place ->
            try {
                var offset = place
                while (bytes.hasRemaining()) offset += channel.write(bytes, offset)
            } catch (error: IOException) {
                throw DecoderError(
                    "$folder cannot hold the frames between two passes, ${file.length() / 1_000_000} MB so far: " +
                        "${error.message}. Free some space.",
                    error,
                )
            }
        }
        this.count = maxOf(this.count, at + count)
    }

    override fun read(first: Long, frames: Int, row: Int, into: StreamFrames, at: Int) {
        each(into, at, frames, 0, into.rows, first, row) { bytes, place ->
            var offset = place
            while (bytes.hasRemaining()) {
                val done = channel.read(bytes, offset)
                if (done <= 0) throw DecoderError("The frames between two passes end at byte $offset. Decode again.")
                offset += done
            }
        }
    }

    override fun close() = file.close()

    /** What of `frames` lies together in memory and in the file, with its place in the file. */
    private inline fun each(
        frames: StreamFrames, first: Int, count: Int, from: Int, rows: Int, at: Long, row: Int,
        body: (ByteBuffer, Long) -> Unit,
    ) {
        val (channels, height, width) = shape
        if (rows == height && frames.rows == height) return body(frames.whole(first, count), offset(at * channels, 0, height, width))
        for (plane in 0 until count * channels) {
            body(frames.plane(first * channels + plane, from, rows), offset(at * channels + plane, row, height, width))
        }
    }

    private fun offset(plane: Long, row: Int, height: Int, width: Int): Long =
        (plane * height + row) * width * dtype.bytesEach
}
