package dev.handheld

/** A streamed artefact as a decoder of clips of one length. */
class StreamedDecoder(
    private val stream: StreamDecoder, private val method: Manifest.Method, override val computeUnits: String,
) : VideoDecoder {
    override val runtimeVersion: String? get() = stream.runtimeVersion
    override val threads: Long? get() = stream.threads

    /** The clip as a whole, as every decoder gives it. */
    override fun run(inputs: List<FloatArray>): List<Output> {
        val shape = method.outputs.single()
        val frames = FloatArray(shape.fold(1L, Long::times).toInt())
        var done = 0
        stream.decode(latents(inputs)) { made ->
            made.copyInto(frames, shape[2].toInt(), done)
            done += made.count
        }
        return listOf(Output(frames))
    }

    /** Decodes the clip and throws its frames away as they come; gives the nanoseconds to the first one. */
    fun throwAway(inputs: List<FloatArray>): Long {
        val start = System.nanoTime()
        var firstNs = 0L
        stream.decode(latents(inputs)) { if (firstNs == 0L) firstNs = System.nanoTime() - start }
        return firstNs
    }

    override fun close() = stream.close()

    private fun latents(inputs: List<FloatArray>) = LatentFrames(inputs.single(), method.inputs.single())
}
