package dev.handheld

import java.nio.ByteBuffer

/**
 * A decoded clip or image, as the bundle's output has it, row-major; an image is one frame. RGB, nominally in [-1, 1]:
 * (1, 3, T, H, W) or (1, 3, H, W). Or 8-bit RGBA: (1, T, H, W, 4) or (1, H, W, 4).
 */
class Frames private constructor(private val values: FloatArray, private val pixels: ByteBuffer?, shape: List<Long>) {
    val count: Int
    val height: Int
    val width: Int

    constructor(values: FloatArray, shape: List<Long>) : this(values, null, shape)

    constructor(output: Output, shape: List<Long>) :
        this(if (output.pixels == null) output.floats else FloatArray(0), output.pixels, shape)

    init {
        val given = pixels?.remaining() ?: values.size
        val isWhole = shape.size in 4..5 && shape[0] == 1L && shape.fold(1L, Long::times) == given.toLong()
        val isColour = isWhole && if (pixels == null) shape[1] == 3L else shape.last() == 4L
        if (!isColour) {
            val wanted = if (pixels == null) "(1, 3, T, H, W) or (1, 3, H, W)" else "(1, T, H, W, 4) or (1, H, W, 4)"
            throw BundleError(
                BundleError.Kind.TENSORS, "Frames are $given values of shape $shape; $wanted is wanted.",
            )
        }
        val (rows, columns) = (if (pixels == null) shape else shape.dropLast(1)).takeLast(2)
        count = if (shape.size == 4) 1 else shape[if (pixels == null) 2 else 1].toInt()
        height = rows.toInt()
        width = columns.toInt()
    }

    /** One frame as rows of R, G, B, alpha bytes, for `Bitmap.copyPixelsFromBuffer`; null where frames are fp32. */
    fun rgba(frame: Int): ByteBuffer? = pixels?.duplicate()?.run {
        position(4 * frame * height * width)
        limit(4 * (frame + 1) * height * width)
        slice()
    }

    /** One frame as `0xAARRGGBB`, row by row, opaque; values beyond [-1, 1] are clamped, NaN is black. */
    fun argb(frame: Int, into: IntArray = IntArray(height * width)): IntArray {
        val plane = height * width
        rgba(frame)?.let { bytes ->
            for (place in 0 until plane) {
                val (red, green, blue) = List(3) { bytes.get(4 * place + it).toInt() and 0xFF }
                into[place] = (0xFF shl 24) or (red shl 16) or (green shl 8) or blue
            }
            return into
        }
        val red = frame * plane
        val green = (count + frame) * plane
        val blue = (2 * count + frame) * plane
        for (place in 0 until plane) {
            into[place] = argbOf(values[red + place], values[green + place], values[blue + place])
        }
        return into
    }
}

/** An opaque pixel of RGB in [-1, 1]. */
internal fun argbOf(red: Float, green: Float, blue: Float): Int =
    (0xFF shl 24) or (byte(red) shl 16) or (byte(green) shl 8) or byte(blue)

private fun byte(value: Float): Int {
    val scaled = (value + 1) * 127.5f
    return if (scaled > 0) minOf(scaled + 0.5f, 255f).toInt() else 0 // the comparison is false for NaN
}
