package dev.handheld

import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue

class MeasurementTest {
    private val bundle = ModelBundle.read(File(FIXTURES, "bundles/good"))
    private val artifact = bundle.manifest.artifacts.first { it.name == "android" }
    private val settings = Profile.Settings(
        repeat = 3, warmup = 1, rounds = 2, threads = 2, cooldownNs = 0, interleaved = false,
    )
    private val meter = object : Meter {
        override fun conditions() = Profile.Conditions("light", null, true, 80, null)
    }

    /** Gives the golden outputs of a shape, as a runtime would that makes no error; `failAt` is a run. */
    private inner class GoldenDecoder(shape: String?, private val failAt: Int = -1) : VideoDecoder {
        override val runtimeVersion = "1"
        override val threads = 2L
        override val computeUnits = "cpu"
        private val golden = bundle.golden(shape)
        private var runs = 0

        override fun run(inputs: List<FloatArray>): List<Output> {
            if (runs++ == failAt) throw DecoderError("no more")
            assertTrue(inputs.single().contentEquals(golden.inputs.getValue("latents")))
            return listOf(Output(golden.outputs.getValue("frames")))
        }

        override fun close() {
            closed++
        }
    }

    private var closed = 0

    @Test
    fun everyRunIsRecordedRawAndTheProfileIsOneThatReadersTake() {
        var told = 0
        val subject = bundle.measure(artifact, settings, meter, open = { GoldenDecoder(it) }) { _, nanoseconds ->
            told++
            nanoseconds > 0
        }
        assertEquals(listOf(3, 3), subject.rounds.map { it.latencyNs.size })
        assertTrue(subject.rounds.flatMap { it.latencyNs }.all { it > 0 })
        assertEquals(6, told)
        assertEquals(listOf(null, "longer"), assertNotNull(subject.parity).map { it.method })
        assertTrue(subject.parity.all { it.maxAbsError == 0.0 })
        assertEquals(2 + 2, closed)
        val profile = bundle.profile(subject, settings, DEVICE, mapOf("handheld-android" to "0.1.0"))
        assertEquals(profile, Profile.parse(profile.toJson().toByteArray(), "own"))
    }

    @Test
    fun aRuntimeThatFailsLeavesWhatWasMeasured() {
        val subject = bundle.measure(artifact, settings, meter, open = { GoldenDecoder(it, failAt = 4) })
        assertEquals("no more", subject.error)
        assertEquals(listOf(2), subject.rounds.map { it.latencyNs.size })
        assertNull(subject.parity)
        assertEquals(1, closed)
    }

    @Test
    fun aListenerEndsTheMeasurement() {
        val subject = bundle.measure(artifact, settings, meter, open = { GoldenDecoder(it) }) { _, _ -> false }
        assertEquals(listOf(1), subject.rounds.map { it.latencyNs.size })
        assertNull(subject.parity)
        assertNull(subject.error)
    }

    @Test
    fun aRuntimeThatIsNotHereIsNamed() {
        val ios = bundle.manifest.artifacts.first { it.name == "ios" }
        val error = assertFailsWith<DecoderError> { bundle.open(ios) }
        assertContains(error.message.orEmpty(), "coreml")
    }

    @Test
    fun residentMemoryIsReadAndItsPeakIsNoLess() {
        val peak = ProcessMemory.watchPeak()
        val grown = ByteArray(64 shl 20) { 1 }
        val now = assertNotNull(ProcessMemory.residentBytes())
        assertTrue(now >= grown.size)
        peak()?.let { assertTrue(it >= grown.size, "peak $it") }
    }

    private companion object {
        val DEVICE = Profile.Device(
            platform = "android", model = null, soc = null, architecture = "arm64-v8a", os = "Android", osVersion = null,
            cores = null, coresAvailable = 4, ramBytes = null, memoryLimitBytes = null, memoryMetric = "rss", emulated = null,
        )
    }
}
