package dev.handheld

import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertSame
import kotlin.test.assertTrue

class LatentsTest {
    /** What `handheld` computes; `tests/fixtures/latents/make.py` explains. */
    private val cases = tree(File(FIXTURES, "latents/conversions.json").readBytes()).mapValues { (_, case) -> case as Map<*, *> }

    @Test
    fun latentsAreConvertedAsHandheldConvertsThem() {
        assertTrue(cases.size > 3)
        for ((name, case) in cases) {
            val statistics = statistics(case["statistics"] as Map<*, *>)
            val shape = (case["shape"] as List<*>).map { it as Long }
            val values = floats(case["values"])
            assertContentEquals(floats(case["normalise"]), statistics.normalise(values, shape), name)
            assertContentEquals(floats(case["denormalise"]), statistics.denormalise(values, shape), name)
        }
    }

    private val shape = listOf(1L, 2, 1, 1, 2)
    private val values = floatArrayOf(1f, 2f, 3f, 4f)
    private val statistics = Manifest.Statistics(listOf(1.0, 2.0), listOf(0.5), 2.0)
    private val plain = Manifest.TensorSpec("latents", shape, "float32", "NCTHW", null, "", statistics)
    private val normalised = plain.copy(normalised = true)

    @Test
    fun aModelIsGivenTheKindThatItTakes() {
        assertEquals(listOf(LatentKind.PLAIN, LatentKind.NORMALISED), listOf(plain, normalised).map { it.latentKind })
        assertSame(values, plain.taken(values, shape, LatentKind.PLAIN))
        assertSame(values, normalised.taken(values, shape, LatentKind.NORMALISED))
        assertContentEquals(floatArrayOf(0f, 4f, 4f, 8f), normalised.taken(values, shape, LatentKind.PLAIN))
        assertContentEquals(floatArrayOf(1.25f, 1.5f, 2.75f, 3f), plain.taken(values, shape, LatentKind.NORMALISED))
    }

    @Test
    fun latentsThatCannotBeConvertedAreRefused() {
        val error = assertFailsWith<BundleError> { plain.copy(statistics = null).taken(values, shape, LatentKind.NORMALISED) }
        assertContains(error.message.orEmpty(), "takes plain")
        for (other in listOf(listOf(1L, 4, 1, 1, 1), listOf(1L, 2, 1, 1, 3), listOf(4L))) {
            assertFailsWith<BundleError> { plain.taken(values, other, LatentKind.NORMALISED) }
        }
    }

    @Test
    fun aDecoderConvertsWhatItIsGiven() {
        val inner = object : VideoDecoder {
            override val runtimeVersion: String? = null
            override val threads: Long? = null
            override val computeUnits = "cpu"

            override fun run(inputs: List<FloatArray>) = inputs.map { Output(it) }

            override fun close() = Unit
        }
        val decoder = ConvertingDecoder(inner) { plain.taken(it, shape, LatentKind.NORMALISED) }
        assertContentEquals(floatArrayOf(1.25f, 1.5f, 2.75f, 3f), decoder.run(listOf(values)).single().floats)
    }

    @Test
    fun framesOfAStreamAreConvertedWhole() {
        val clip = LatentFrames(values, listOf(1, 2, 2, 1, 1), 4)
        assertSame(clip, clip.taken(plain, LatentKind.PLAIN))
        val converted = clip.taken(plain, LatentKind.NORMALISED)
        assertEquals(4, converted.count)
        val read = StreamFrames(2, 2, 1, 1, StreamDtype.FLOAT32)
        converted.read(2, 2, 0, read, 0)
        assertEquals(listOf(1.25f, 2.75f, 1.5f, 3f), List(4) { read[it] })
    }

    private fun statistics(of: Map<*, *>) = Manifest.Statistics(
        (of["mean"] as List<*>).map { it as Double }, (of["std"] as List<*>).map { it as Double }, of["scaling"] as Double,
    )

    private fun floats(of: Any?): FloatArray = (of as List<*>).map { (it as Double).toFloat() }.toFloatArray()
}
