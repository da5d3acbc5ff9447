package dev.handheld

// IEEE 754 half precision by its bits: android.util.Half is there since API 26 only.

/** The value of a half. */
fun halfToFloat(bits: Short): Float {
    val sign = (bits.toInt() and 0x8000) shl 16
    val magnitude = bits.toInt() and 0x7FFF
    return when {
        magnitude >= 0x7C00 -> Float.fromBits(sign or 0x7F800000 or (magnitude and 0x3FF shl 13))
        magnitude >= 0x400 -> Float.fromBits(sign or ((magnitude shl 13) + (112 shl 23)))
        else -> Float.fromBits(sign or (magnitude * SMALLEST_HALF).toRawBits())
    }
}

/** The nearest half, ties to even; what is too large becomes infinity. */
fun floatToHalf(value: Float): Short {
    val bits = value.toRawBits()
    val sign = bits ushr 16 and 0x8000
    val magnitude = bits and 0x7FFFFFFF
    val half = when {
        magnitude > 0x7F800000 -> 0x7E00
        magnitude >= 0x477FF000 -> 0x7C00 // 65520 and more
        // Below the normal halves, adding 0.5 puts a half's last place at the sum's, which then rounds.
        magnitude < 0x38800000 -> (Float.fromBits(magnitude) + 0.5f).toRawBits() - 0.5f.toRawBits()
        else -> magnitude - (112 shl 23) + 0xFFF + (magnitude ushr 13 and 1) ushr 13
    }
    return (sign or half).toShort()
}

private const val SMALLEST_HALF = 1f / (1 shl 24)
