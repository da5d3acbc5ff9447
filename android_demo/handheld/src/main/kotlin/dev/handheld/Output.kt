package dev.handheld

import java.nio.ByteBuffer

/** What a run gives for one output, row-major: fp32 values, or 8-bit RGBA, (1, T, H, W, 4) or (1, H, W, 4), as bytes. */
class Output private constructor(private val values: FloatArray?, private val bytes: ByteBuffer?) {
    constructor(values: FloatArray) : this(values, null)

    constructor(pixels: ByteBuffer) : this(null, pixels)

    /** The bytes of 8-bit RGBA, from position 0 on; null where the output is fp32. */
    val pixels: ByteBuffer? get() = bytes?.duplicate()?.apply { clear() }

    /** The values as fp32; levels of 8-bit RGBA as 0 to 255. */
    val floats: FloatArray by lazy {
        values ?: pixels!!.let { levels -> FloatArray(levels.remaining()) { (levels.get(it).toInt() and 0xFF).toFloat() } }
    }
}
