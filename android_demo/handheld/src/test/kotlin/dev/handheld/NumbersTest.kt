package dev.handheld

import java.nio.ByteBuffer
import kotlin.math.abs
import kotlin.math.nextDown
import kotlin.math.nextUp
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue

class NumbersTest {
    @Test
    fun everyHalfSurvivesTheWayThroughFloat() {
        for (bits in 0..0xFFFF) {
            val value = halfToFloat(bits.toShort())
            if (value.isNaN()) assertTrue(halfToFloat(floatToHalf(value)).isNaN()) else assertEquals(bits.toShort(), floatToHalf(value))
        }
    }

    @Test
    fun floatsRoundToTheNearestHalfAndTiesToEven() {
        for (bits in 0 until 0x7BFF) {
            val low = halfToFloat(bits.toShort())
            val high = halfToFloat((bits + 1).toShort())
            val middle = (low + high) / 2
            val even = if (bits % 2 == 0) bits else bits + 1
            assertEquals(even.toShort(), floatToHalf(middle), "tie above $low")
            assertEquals(bits.toShort(), floatToHalf(middle.nextDown()), "below the tie above $low")
            assertEquals((bits + 1).toShort(), floatToHalf(middle.nextUp()), "above the tie above $low")
        }
        assertEquals(0x7BFF.toShort(), floatToHalf(65519.996f))
        assertEquals(0x7C00.toShort(), floatToHalf(65520f))
        assertEquals(0xFC00.toShort(), floatToHalf(Float.NEGATIVE_INFINITY))
    }

    @Test
    fun framesBecomePixels() {
        val values = floatArrayOf(-1f, 1f, 0f, 5f, Float.NaN, -7f) // two frames of one pixel: R, R, G, G, B, B
        val frames = Frames(values, listOf(1, 3, 2, 1, 1))
        assertContentEquals(intArrayOf(0xFF008000.toInt()), frames.argb(0))
        assertContentEquals(intArrayOf(0xFFFFFF00.toInt()), frames.argb(1))
    }

    @Test
    fun anImageIsOneFrame() {
        val image = Frames(floatArrayOf(-1f, 1f, 0f, 5f, -1f, -1f), listOf(1, 3, 1, 2)) // two pixels: R, R, G, G, B, B
        assertEquals(listOf(1, 1, 2), listOf(image.count, image.height, image.width))
        assertContentEquals(intArrayOf(0xFF008000.toInt(), 0xFFFFFF00.toInt()), image.argb(0))
    }

    @Test
    fun pixelsAreShownAsTheyAre() {
        val bytes = ByteArray(2 * 1 * 2 * 4) { (16 * it).toByte() } // two frames of two pixels
        val output = Output(ByteBuffer.wrap(bytes))
        val frames = Frames(output, listOf(1, 2, 1, 2, 4))
        assertEquals(listOf(2, 1, 2), listOf(frames.count, frames.height, frames.width))
        assertEquals(ByteBuffer.wrap(bytes, 8, 8), frames.rgba(1))
        assertContentEquals(intArrayOf(0xFF8090A0.toInt(), 0xFFC0D0E0.toInt()), frames.argb(1))
        assertEquals(240f, output.floats.last())
        assertEquals(1, Frames(output, listOf(1, 2, 2, 4)).count)
        assertNull(Frames(floatArrayOf(0f, 0f, 0f), listOf(1, 3, 1, 1)).rgba(0))
        assertFailsWith<BundleError> { Frames(output, listOf(1, 4, 2, 2)) }
    }

    @Test
    fun framesOfAnotherShapeAreRefused() {
        for (shape in listOf(listOf(3L, 2, 1), listOf(1L, 3, 1, 1), listOf(1L, 6, 1, 1), listOf(2L, 3, 1, 1, 1), listOf(1L, 3, 1, 1, 1), listOf(1L, 1, 6, 1, 1))) {
            assertFailsWith<BundleError> { Frames(FloatArray(6), shape) }
        }
    }

    private val spec = Manifest.TensorSpec("frames", listOf(1, 3, 1, 1, 1), "float32", "NCTHW", -1.0 to 1.0, "")
    private val golden = floatArrayOf(0f, 0.5f, -0.5f)

    @Test
    fun parityIsMeasuredAgainstTheRange() {
        val parity = Parity.of(spec, null, floatArrayOf(0f, 0.75f, -0.5f), golden)
        assertEquals(0.25, parity.maxAbsError)
        assertEquals(0.0625 / 3, parity.meanSquaredError)
        assertEquals(2.0, parity.peak)
        assertTrue(abs(assertNotNull(parity.psnrDb) - 22.8330) < 1e-3)
        assertEquals(1.0, Parity.of(spec.copy(range = null), null, golden, golden).peak)
    }

    @Test
    fun aToleranceSaysWhichLimitIsBroken() {
        val parity = Parity.of(spec, null, floatArrayOf(0f, 0.75f, -0.5f), golden)
        assertNull(parity.fault(Manifest.Tolerance(0.3, 20.0, "")))
        assertTrue("largest error" in assertNotNull(parity.fault(Manifest.Tolerance(0.2, null, ""))))
        assertTrue("PSNR" in assertNotNull(parity.fault(Manifest.Tolerance(null, 30.0, ""))))
        assertEquals(Double.POSITIVE_INFINITY, Parity.of(spec, null, golden, golden).psnrDb)
    }

    @Test
    fun anOutputThatIsNotFiniteHasNoFiguresAndFails() {
        for (bad in listOf(Float.NaN, Float.POSITIVE_INFINITY)) {
            val parity = Parity.of(spec, "longer", floatArrayOf(0f, bad, 0f), golden)
            assertEquals(Parity("frames", "longer", false, null, null, null), parity)
            assertNotNull(parity.fault(Manifest.Tolerance(1e9, null, "")))
        }
    }
}
