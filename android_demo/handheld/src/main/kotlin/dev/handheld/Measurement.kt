package dev.handheld

import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone

/**
 * Told of every timed run: its outputs, in the order of the specs, and what it took. False ends the measurement. Of a
 * streamed artefact there are no outputs: its frames are thrown away as they come.
 */
typealias RunListener = (outputs: List<Output>, latencyNs: Long) -> Boolean

/**
 * Measures an artefact on the golden inputs of one shape: rounds of load, first run, warm-up and timed runs, raw. Then
 * all shapes are replayed for parity.
 *
 * A failure of the runtime, or of memory, ends it: what was measured is kept, and [Profile.Subject.error] says why. So
 * does the listener, without a reason; then there is no parity.
 *
 * @param shape one of [ModelBundle.shapes]; null is the first.
 * @param open loads the artefact in a shape; another one than the app's own is for tests.
 * @throws BundleError for an artefact or golden tensors that are not what the manifest says.
 */
fun ModelBundle.measure(
    artifact: Manifest.Artifact,
    settings: Profile.Settings,
    meter: Meter,
    shape: String? = null,
    open: (String?) -> VideoDecoder = { openChecked(artifact, it, settings.threads?.toInt()) },
    listener: RunListener = { _, _ -> true },
): Profile.Subject {
    check(artifact)
    val inputs = golden(shape).inputs.let { golden -> manifest.inputs.map { golden.getValue(it.name) } }
    val rounds = ArrayList<Profile.Round>()
    var subject = subject(artifact, shape)
    try {
        var goOn = true
        for (index in 0 until settings.rounds) {
            if (!goOn) break
            if (index > 0) Thread.sleep(settings.cooldownNs / 1_000_000)
            RoundRecorder(meter).use { recorder ->
                try {
                    val decoder = recorder.load { open(shape) }
                    subject = subject.copy(
                        runtimeVersion = decoder.runtimeVersion, threads = decoder.threads,
                        computeUnitsAsked = decoder.computeUnits,
                    )
                    goOn = recorder.run(decoder, inputs, settings, listener)
                } finally {
                    rounds += recorder.round()
                }
            }
        }
        if (goOn) subject = subject.copy(parity = replay(artifact, open))
    } catch (error: DecoderError) {
        subject = subject.copy(error = error.message ?: "The runtime failed.")
    } catch (error: OutOfMemoryError) {
        subject = subject.copy(error = "Out of memory: ${error.message}. Use a smaller shape.")
    }
    return subject.copy(rounds = rounds)
}

/**
 * Replays the golden tensors of every shape through an artefact; `open` loads it in a shape, checked
 * ([ModelBundle.open]).
 */
fun ModelBundle.replay(artifact: Manifest.Artifact, open: (String?) -> VideoDecoder): List<Parity> = shapes.flatMap { shape ->
    val golden = golden(shape)
    val outputs = open(shape).use { decoder -> decoder.run(manifest.inputs.map { golden.inputs.getValue(it.name) }) }
    manifest.outputs.zip(outputs) { spec, output -> Parity.of(spec, shape, output.floats, golden.outputs.getValue(spec.name)) }
}

/** A profile of one subject of this bundle. */
fun ModelBundle.profile(
    subject: Profile.Subject, settings: Profile.Settings, device: Profile.Device, software: Map<String, String>,
): Profile = Profile(
    createdUtc = utcNow(),
    command = null,
    software = software,
    settings = settings,
    device = device,
    bundles = listOf(
        Profile.BundleInfo(manifest.name, manifest.createdUtc, manifest.provenance, manifest.versions),
    ),
    subjects = listOf(subject),
)

/** Now, as profiles have it. */
fun utcNow(): String = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT)
    .apply { timeZone = TimeZone.getTimeZone("UTC") }.format(Date())

private fun ModelBundle.subject(artifact: Manifest.Artifact, shape: String?): Profile.Subject {
    val method = artifact.methods.first { shape == null || it.name == shape }
    return Profile.Subject(
        label = artifact.name, role = "student", bundle = 0, artifact = artifact.name, target = artifact.target,
        runtime = artifact.runtime, runtimeVersion = null, precision = artifact.precision, sha256 = artifact.sha256,
        sizeBytes = artifact.sizeBytes, method = method.name, inputShapes = method.inputs,
        outputShapes = method.outputs, unit = "frame", unitsPerRun = manifest.outputs.first().frames(method.outputs.first()), promptTokens = null,
        threads = null, computeUnitsAsked = null, computeUnitsObserved = null,
        tolerance = Profile.Limits(artifact.tolerance.maxAbs, artifact.tolerance.minPsnrDb), rounds = emptyList(),
        parity = null, error = null,
    )
}

/** One round as it goes; closing it lets the decoder go. */
private class RoundRecorder(private val meter: Meter) : AutoCloseable {
    private var decoder: VideoDecoder? = null
    private val before = meter.conditions()
    private val baseline = ProcessMemory.residentBytes()
    private val peak = ProcessMemory.watchPeak()
    private var loadNs: Long? = null
    private var firstRunNs: Long? = null
    private val latencyNs = ArrayList<Long>()
    private val firstFrameNs = ArrayList<Long>()

    fun load(open: () -> VideoDecoder): VideoDecoder {
        val (loaded, nanoseconds) = timed(open)
        decoder = loaded
        loadNs = nanoseconds
        return loaded
    }

    /** False where the listener ended it. */
    fun run(
        decoder: VideoDecoder, inputs: List<FloatArray>, settings: Profile.Settings, listener: RunListener,
    ): Boolean {
        firstRunNs = timed { once(decoder, inputs) }.second
        for (index in 0 until settings.warmup) once(decoder, inputs)
        for (index in 0 until settings.repeat) {
            val (outputs, nanoseconds) = timed { once(decoder, inputs) { firstFrameNs += it } }
            latencyNs += nanoseconds
            if (!listener(outputs, nanoseconds)) return false
        }
        return true
    }

    private fun once(decoder: VideoDecoder, inputs: List<FloatArray>, first: (Long) -> Unit = {}): List<Output> {
        if (decoder !is StreamedDecoder) return decoder.run(inputs)
        first(decoder.throwAway(inputs))
        return emptyList()
    }

    fun round(): Profile.Round = Profile.Round(
        loadNs = loadNs, firstRunNs = firstRunNs, latencyNs = latencyNs.toList(),
        firstFrameNs = firstFrameNs.toList(), baselineBytes = baseline,
        peakBytes = peak(), flash = null, before = before, after = meter.conditions(),
    )

    override fun close() {
        decoder?.close()
    }
}
