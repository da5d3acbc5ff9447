package dev.handheld

import java.io.Closeable
import java.io.File

/**
 * A loaded artefact in one shape: inputs in, outputs out, in the order of the bundle's specs, row-major. Inputs are fp32.
 *
 * One call at a time, from any thread. Implementations throw [DecoderError] where the runtime refuses.
 */
interface VideoDecoder : Closeable {
    /** Of the runtime's library, null where it does not say. */
    val runtimeVersion: String?

    /** CPU threads that it runs on, null where it does not say. */
    val threads: Long?

    /** Where the artefact asks to run, in the runtime's words. */
    val computeUnits: String

    fun run(inputs: List<FloatArray>): List<Output>
}

/** What a runtime says when it cannot load or run an artefact. */
class DecoderError(message: String, cause: Throwable? = null) : Exception(message, cause)

/** What it takes to open a decoder; the artefact's hash must have been checked. */
class DecoderSource(
    val bundle: ModelBundle,
    val artifact: Manifest.Artifact,
    val method: Manifest.Method,
    /** CPU threads to ask for, null for the runtime's own choice. */
    val threads: Int?,
)

/** How a runtime runs an artefact, and how the program of a segment of a streamed one; null where it runs none. */
private class RuntimeKind(
    val computeUnits: String,
    val program: ((DecoderSource, StreamPlan.Segment) -> StreamProgram)?,
    val decoder: (DecoderSource, String) -> VideoDecoder,
)

/** By the name in manifests. A new one is a line here and a file. */
private val RUNTIMES = mapOf(
    "executorch" to RuntimeKind("xnnpack", ::ExecuTorchProgram, ::ExecuTorchDecoder),
    "executorch-vulkan" to RuntimeKind("vulkan", null, ::ExecuTorchDecoder),
    "onnxruntime" to RuntimeKind("cpu", ::OnnxProgram, ::OnnxDecoder),
)

/** Whether this app has the runtime that an artefact needs. */
val Manifest.Artifact.runsHere: Boolean
    get() = RUNTIMES[runtime]?.let { stream == null || it.program != null } ?: false

/**
 * Hashes an artefact and loads it. Of a streamed one, every call of `run` decodes a clip of that shape; [openStream]
 * takes clips of any length.
 *
 * @param shape one of [ModelBundle.shapes]; null is the first.
 * @param latents the kind that it will be given, converted where the model takes the other; null is what the model takes.
 * @throws BundleError for an artefact that is not what the manifest says, and latents that it does not say how to convert.
 * @throws DecoderError for one that the runtime refuses, or that needs a runtime that is not here.
 */
fun ModelBundle.open(
    artifact: Manifest.Artifact, shape: String? = null, threads: Int? = null, latents: LatentKind? = null,
): VideoDecoder {
    val spec = manifest.inputs.first()
    if (latents != null) spec.requireConvertible(latents)
    check(artifact)
    val decoder = openChecked(artifact, shape, threads)
    if (latents == null || latents == spec.latentKind) return decoder
    val dims = artifact.methods.first { shape == null || it.name == shape }.inputs.first()
    return ConvertingDecoder(decoder) { spec.taken(it, dims, latents) }
}

/** Converts the first input, the latents, before each run. */
internal class ConvertingDecoder(private val decoder: VideoDecoder, private val convert: (FloatArray) -> FloatArray) :
    VideoDecoder by decoder {
    override fun run(inputs: List<FloatArray>): List<Output> =
        decoder.run(listOf(convert(inputs.first())) + inputs.drop(1))
}

/**
 * Hashes a streamed artefact and opens it for clips of any length. Throws as [open] does, and DecoderError for an
 * artefact that is not streamed.
 *
 * @param scratch a folder for frames between passes, where there are several: `context.cacheDir`.
 * @param latents the kind that it will be given, as of [open].
 */
fun ModelBundle.openStream(
    artifact: Manifest.Artifact, threads: Int? = null, scratch: File = SCRATCH, latents: LatentKind? = null,
): StreamDecoder {
    if (latents != null) manifest.inputs.first().requireConvertible(latents)
    check(artifact)
    return openStreamChecked(artifact, threads, scratch, latents)
}

internal fun ModelBundle.openChecked(artifact: Manifest.Artifact, shape: String?, threads: Int?): VideoDecoder {
    val runtime = runtime(artifact)
    val source = DecoderSource(this, artifact, artifact.methods.first { shape == null || it.name == shape }, threads)
    if (artifact.stream == null) return runtime.decoder(source, runtime.computeUnits)
    return StreamedDecoder(openStreamChecked(artifact, threads, SCRATCH), source.method, runtime.computeUnits)
}

private fun ModelBundle.openStreamChecked(
    artifact: Manifest.Artifact, threads: Int?, scratch: File, latents: LatentKind? = null,
): StreamDecoder {
    val plan = artifact.stream ?: throw DecoderError(
        "${artifact.name} decodes clips of one length. Export one with --stream, or choose another one.",
    )
    val program = runtime(artifact).program ?: throw DecoderError("${artifact.runtime} runs no streamed artefacts.")
    val source = DecoderSource(this, artifact, artifact.methods.first(), threads)
    val (_, channels, _, height, width) = source.method.inputs.first().map { it.toInt() }
    val taken = { given: LatentFrames -> if (latents == null) given else given.taken(manifest.inputs.first(), latents) }
    val shape = listOf(channels, height, width)
    return StreamDecoder(plan, shape, StreamDtype.of(artifact.inputDtype), scratch, taken) { segment ->
        program(source, segment)
    }
}

private fun runtime(artifact: Manifest.Artifact): RuntimeKind = RUNTIMES[artifact.runtime] ?: throw DecoderError(
    "${artifact.name} runs with ${artifact.runtime}; this app has ${RUNTIMES.keys.joinToString()}. Choose another one.",
)

/** On Android the app's cache. */
private val SCRATCH get() = File(System.getProperty("java.io.tmpdir") ?: ".")
