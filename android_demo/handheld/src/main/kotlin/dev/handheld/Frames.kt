package dev.handheld

/**
 * A decoded clip or image: RGB, nominally in [-1, 1], as the bundle's output has it: (1, 3, T, H, W), or (1, 3, H, W) of an
 * image, which is one frame; row-major.
 */
class Frames(private val values: FloatArray, shape: List<Long>) {
    val count: Int
    val height: Int
    val width: Int

    init {
        val isRgb = shape.size in 4..5 && shape[0] == 1L && shape[1] == 3L
        if (!isRgb || shape.fold(1L, Long::times) != values.size.toLong()) {
            throw BundleError(
                BundleError.Kind.TENSORS,
                "Frames are ${values.size} values of shape $shape; (1, 3, T, H, W) or (1, 3, H, W) is wanted.",
            )
        }
        count = if (shape.size == 5) shape[2].toInt() else 1
        height = shape[shape.size - 2].toInt()
        width = shape.last().toInt()
    }

    /** One frame as `0xAARRGGBB`, row by row, opaque; values beyond [-1, 1] are clamped, NaN is black. */
    fun argb(frame: Int, into: IntArray = IntArray(height * width)): IntArray {
        val plane = height * width
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
