package dev.handheld

import java.io.Closeable

/**
 * A loaded artefact in one shape: inputs in, outputs out, in the order of the bundle's specs, row-major fp32.
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

    fun run(inputs: List<FloatArray>): List<FloatArray>
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

/** A runtime by its name in manifests. A new one is a line here and a file. */
private val DECODERS: Map<String, (DecoderSource) -> VideoDecoder> = mapOf(
    "executorch" to { source -> ExecuTorchDecoder(source, "xnnpack") },
    "executorch-vulkan" to { source -> ExecuTorchDecoder(source, "vulkan") },
    "onnxruntime" to ::OnnxDecoder,
)

/** Whether this app has the runtime that an artefact needs. */
val Manifest.Artifact.runsHere: Boolean get() = runtime in DECODERS

/**
 * Hashes an artefact and loads it.
 *
 * @param shape one of [ModelBundle.shapes]; null is the first.
 * @throws BundleError for an artefact that is not what the manifest says.
 * @throws DecoderError for one that the runtime refuses, or that needs a runtime that is not here.
 */
fun ModelBundle.open(artifact: Manifest.Artifact, shape: String? = null, threads: Int? = null): VideoDecoder {
    check(artifact)
    return openChecked(artifact, shape, threads)
}

internal fun ModelBundle.openChecked(artifact: Manifest.Artifact, shape: String?, threads: Int?): VideoDecoder {
    if (artifact.isStreamed) {
        throw DecoderError("${artifact.name} is streamed, which this library does not run yet. Export it without --stream.")
    }
    val open = DECODERS[artifact.runtime] ?: throw DecoderError(
        "${artifact.name} runs with ${artifact.runtime}; this app has ${DECODERS.keys.joinToString()}. Choose another one.",
    )
    val method = artifact.methods.first { shape == null || it.name == shape }
    return open(DecoderSource(this, artifact, method, threads))
}
