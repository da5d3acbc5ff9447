package dev.handheld

import java.io.File
import kotlin.math.abs
import kotlin.test.BeforeTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import org.junit.Assume.assumeTrue

/**
 * Artefacts in ONNX Runtime itself, most of them streamed, as `check/streams.py` exports them: the folder in the property
 * `handheld.streams`, with what the model makes of clips of other lengths in `clips.safetensors`.
 */
class OnnxStreamTest {
    private val folder = System.getProperty("handheld.streams")?.let(::File)
    private val meter = object : Meter {
        override fun conditions() = Profile.Conditions(null, null, null, null, null)
    }

    private fun bundle(name: String) = ModelBundle.read(File(folder, name))

    private fun ModelBundle.onnx() = manifest.artifacts.single { it.name == "onnx" }

    @BeforeTest
    fun skipWithoutRuntime() = assumeTrue("no ONNX Runtime and no bundles: run `make android`", folder != null)

    @Test
    fun goldenTensorsOfBothLengthsAreMetInOnePassInStripsAndInHalfPrecision() {
        for (name in listOf("whole", "strips", "half")) {
            val bundle = bundle(name)
            val artifact = bundle.onnx()
            assertTrue(artifact.runsHere)
            val parity = bundle.replay(artifact) { shape -> bundle.open(artifact, shape, threads = 1) }
            assertEquals(bundle.shapes, parity.map { it.method })
            assertEquals(2, parity.size)
            for (one in parity) assertNull(one.fault(artifact.tolerance), name)
        }
    }

    @Test
    fun everyShapeAndFramesOfBytesAreMet() {
        for ((name, shapes) in mapOf("shapes" to 2, "pixels" to 1)) {
            val bundle = bundle(name)
            val artifact = bundle.onnx()
            val parity = bundle.replay(artifact) { shape -> bundle.open(artifact, shape, threads = 1) }
            assertEquals(shapes, parity.size)
            for (one in parity) assertNull(one.fault(artifact.tolerance), name)
        }
        val bundle = bundle("pixels")
        val shape = bundle.onnx().methods.single().outputs.single()
        val output = bundle.open(bundle.onnx(), threads = 1).use { it.run(listOf(bundle.golden().inputs.values.single())) }.single()
        val frames = Frames(output, shape)
        assertEquals(bundle.manifest.outputs.single().frames(shape), frames.count.toLong())
        val bytes = assertNotNull(frames.rgba(frames.count - 1))
        assertEquals(4 * frames.width * frames.height, bytes.remaining())
        assertEquals(0xFF.toByte(), bytes.get(3), "alpha")
    }

    @Test
    fun clipsOfOtherLengthsAreThoseOfTheModel() {
        for (name in listOf("whole", "strips")) {
            val bundle = bundle(name)
            Safetensors(File(folder, "clips.safetensors"), "clips").use { clips ->
                bundle.openStream(bundle.onnx(), threads = 1).use { stream ->
                    for (length in listOf("7", "2", "7")) {
                        val latents = LatentFrames(clips.floats("latents.$length"), clips.tensors.getValue("latents.$length").shape)
                        val wanted = clips.floats("frames.$length")
                        val total = stream.length(length.toLong()).toInt()
                        val found = FloatArray(wanted.size)
                        var done = 0
                        stream.decode(latents) { made ->
                            made.copyInto(found, total, done)
                            done += made.count
                        }
                        assertEquals(total, done)
                        assertTrue(wanted.indices.all { abs(wanted[it] - found[it]) < 1e-4 }, "$name, $length latent frames")
                    }
                }
            }
        }
    }

    @Test
    fun aStreamedArtefactIsMeasured() {
        val bundle = bundle("whole")
        val settings = Profile.Settings(repeat = 3, warmup = 1, rounds = 2, threads = 1, cooldownNs = 0, interleaved = false)
        val subject = bundle.measure(bundle.onnx(), settings, meter)
        assertNull(subject.error)
        assertEquals(listOf(3, 3), subject.rounds.map { it.latencyNs.size })
        for (round in subject.rounds) {
            assertEquals(3, round.firstFrameNs.size)
            assertTrue(round.firstFrameNs.zip(round.latencyNs).all { (first, all) -> first in 1..all })
        }
        assertEquals(2, assertNotNull(subject.parity).size)
        assertEquals(7L, subject.unitsPerRun)
        assertEquals(1L, subject.threads)
        assertNotNull(subject.runtimeVersion)
    }

    @Test
    fun onlyAStreamedArtefactIsOpenedAsAStream() {
        val whole = ModelBundle.read(File(FIXTURES, "bundles/good"))
        val error = assertFailsWith<DecoderError> { whole.openStream(whole.manifest.artifacts.first { it.name == "onnx" }) }
        assertContains(error.message.orEmpty(), "--stream")
    }
}
