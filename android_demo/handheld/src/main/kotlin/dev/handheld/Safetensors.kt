package dev.handheld

import java.io.Closeable
import java.io.EOFException
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * A safetensors file with tensors of fp32, fp16 and bytes. Every offset is checked before anything is read or allocated.
 *
 * Throws [BundleError] TENSORS for a file that is not one (a tensor that does not lie in it, overlaps another, leaves a
 * hole or has a size that is not its shape's), MISSING for one that cannot be read. `name` is for messages.
 */
class Safetensors(file: File, private val name: String) : Closeable {
    /** A tensor's type, as manifests name it, its shape and where it lies behind the header. */
    data class Tensor(val dtype: String, val shape: List<Long>, val start: Long, val end: Long)

    val tensors: Map<String, Tensor>
    private val stream: RandomAccessFile = reading { RandomAccessFile(file, "r") }
    private val dataStart: Long

    init {
        try {
            val length = reading { stream.length() }
            val headerBytes = if (length < 8) refuse("$length bytes") else bytes(0, 8).getLong(0)
            if (headerBytes !in 0..minOf(length - 8, LARGEST_HEADER)) {
                refuse("a header of ${headerBytes.toULong()} bytes in a file of $length")
            }
            dataStart = 8 + headerBytes
            val header = try {
                Json.parse(bytes(8, headerBytes.toInt()).array())
            } catch (error: JsonError) {
                refuse("${error.message}")
            }
            tensors = parse(header)
            refuseHoles(length - dataStart)
        } catch (error: BundleError) {
            stream.close()
            throw error
        }
    }

    /** The values of a tensor, row-major. */
    fun floats(tensor: String): FloatArray {
        val found = requireNotNull(tensors[tensor]) { "$name holds no $tensor" }
        val bytesEach = BYTES.getValue(found.dtype)
        val count = (found.end - found.start) / bytesEach
        if (count > Int.MAX_VALUE) refuse("$tensor has $count values, more than an array holds")
        val values = FloatArray(count.toInt())
        var done = 0
        while (done < values.size) {
            val take = minOf(values.size - done, PIECE)
            val piece = bytes(dataStart + found.start + done.toLong() * bytesEach, take * bytesEach)
            if (bytesEach == 4) {
                piece.asFloatBuffer().get(values, done, take)
            } else if (bytesEach == 1) {
                for (index in 0 until take) values[done + index] = (piece.get(index).toInt() and 0xFF).toFloat()
            } else {
                for (index in 0 until take) values[done + index] = halfToFloat(piece.getShort(2 * index))
            }
            done += take
        }
        return values
    }

    override fun close() = stream.close()

    private fun parse(header: Any?): Map<String, Tensor> {
        val faults = ArrayList<String>()
        val tensors = Field(header, "", faults).free().filterKeys { it != "__metadata__" }.mapValues { (name, entry) ->
            Field(entry, name, faults).record("dtype", "shape", "data_offsets") { field ->
                val dtype = field("dtype").text()
                val shape = field("shape").list { it.integer() }
                val offsets = field("data_offsets").list(2) { it.integer() }
                Tensor(DTYPES[dtype] ?: dtype, shape, offsets.getOrElse(0) { 0 }, offsets.getOrElse(1) { 0 })
                    .also { if (offsets.size > 2) faults.add("$name: more than two offsets") }
            }
        }
        if (faults.isNotEmpty()) refuse(faults.joinToString("; "))
        return tensors
    }

    /** Tensors follow each other from the header to the end of the file, each of the size that its shape says. */
    private fun refuseHoles(dataBytes: Long) {
        var at = 0L
        for ((name, tensor) in tensors.entries.sortedWith(compareBy({ it.value.start }, { it.value.end }))) {
            if (tensor.start != at || tensor.end < at || tensor.end > dataBytes) {
                refuse("$name at ${tensor.start} to ${tensor.end} does not follow what ends at $at, in $dataBytes bytes")
            }
            val bytesEach = BYTES[tensor.dtype] ?: refuse("$name is ${tensor.dtype}; wanted ${DTYPES.keys}")
            if (sizeOf(tensor.shape, bytesEach) != tensor.end - tensor.start) {
                refuse("$name has ${tensor.end - tensor.start} bytes, which is not the size of ${tensor.shape}")
            }
            at = tensor.end
        }
        if (at != dataBytes) refuse("its tensors end at $at, its data at $dataBytes")
    }

    /** Null where it does not fit 64 bits. */
    private fun sizeOf(shape: List<Long>, bytesEach: Int): Long? = shape.fold(bytesEach.toLong() as Long?) { size, extent ->
        if (size == null || (extent != 0L && size > Long.MAX_VALUE / extent)) null else size * extent
    }

    private fun bytes(start: Long, count: Int): ByteBuffer {
        val array = ByteArray(count)
        reading {
            stream.seek(start)
            stream.readFully(array)
        }
        return ByteBuffer.wrap(array).order(ByteOrder.LITTLE_ENDIAN)
    }

    private fun <T> reading(body: () -> T): T = try {
        body()
    } catch (error: EOFException) {
        refuse("it shrank while it was read")
    } catch (error: IOException) {
        throw BundleError(BundleError.Kind.MISSING, "$name cannot be read: ${error.message}.", error)
    }

    private fun refuse(why: String): Nothing = throw BundleError(
        BundleError.Kind.TENSORS, "$name is not safetensors: $why. Fetch or export the bundle again.",
    )

    private companion object {
        /** Golden files name a handful of tensors: far below the 100 MB that the format allows. */
        const val LARGEST_HEADER = 16L shl 20
        const val PIECE = 1 shl 18
        val DTYPES = mapOf("F32" to Manifest.FLOAT32, "F16" to Manifest.FLOAT16, "U8" to Manifest.UINT8)
        val BYTES = mapOf(Manifest.FLOAT32 to 4, Manifest.FLOAT16 to 2, Manifest.UINT8 to 1)
    }
}
