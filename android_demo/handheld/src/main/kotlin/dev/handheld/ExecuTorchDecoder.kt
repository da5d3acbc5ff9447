package dev.handheld

import java.io.File
import java.nio.ByteBuffer
import org.pytorch.executorch.DType
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** One method of a `.pte`. Inputs and outputs go by position. */
private class ExecuTorchMethod(file: File, val name: String, private val method: String, threads: Int?) : AutoCloseable {
    private val module: Module = guarded("load") {
        // Mapped: weights count as clean pages, which the system may drop and read again.
        Module.load(file.path, Module.LOAD_MODE_MMAP, threads ?: RUNTIMES_CHOICE)
    }

    init {
        try {
            guarded("load") { module.loadMethod(method) }
        } catch (error: DecoderError) {
            module.destroy()
            throw error
        }
    }

    /** The results are the method's own memory: they hold until its next run. */
    fun run(inputs: Array<EValue>, outputs: Int): Array<EValue> {
        val results = guarded("run") { module.execute(method, *inputs) }
        if (results.size != outputs) throw DecoderError("$name gave ${results.size} outputs, not $outputs.")
        return results
    }

    override fun close() = module.destroy()

    // The library throws RuntimeException and its subclasses; a missing native library is a LinkageError.
    private fun <T> guarded(what: String, body: () -> T): T = try {
        body()
    } catch (error: RuntimeException) {
        throw DecoderError("ExecuTorch cannot $what $name: ${error.message}", error)
    } catch (error: LinkageError) {
        throw DecoderError("ExecuTorch is not in this app: ${error.message}", error)
    }

    private companion object {
        const val RUNTIMES_CHOICE = 0
    }
}

/** A whole artefact in one of its shapes. */
internal class ExecuTorchDecoder(private val source: DecoderSource, override val computeUnits: String) : VideoDecoder {
    override val runtimeVersion: String? = null // the library does not say
    override val threads: Long? = source.threads?.toLong()
    private val method = ExecuTorchMethod(
        source.bundle.locate(source.artifact.path), source.artifact.name, source.method.name, source.threads,
    )

    override fun run(inputs: List<FloatArray>): List<Output> {
        val values = inputs.zip(source.method.inputs) { input, shape -> EValue.from(tensor(input, shape)) }
        return method.run(values.toTypedArray(), source.method.outputs.size).map { output(it.toTensor()) }
    }

    override fun close() = method.close()

    private fun tensor(values: FloatArray, shape: List<Long>): Tensor {
        val dims = shape.toLongArray()
        if (source.artifact.inputDtype == Manifest.FLOAT32) return Tensor.fromBlob(values, dims)
        return Tensor.fromBlob(ShortArray(values.size) { floatToHalf(values[it]) }, dims)
    }

    private fun output(tensor: Tensor): Output = when (tensor.dtype()) {
        DType.FLOAT -> Output(tensor.dataAsFloatArray)
        DType.HALF -> tensor.dataAsShortArray.let { halves -> Output(FloatArray(halves.size) { halfToFloat(halves[it]) }) }
        DType.UINT8 -> Output(ByteBuffer.wrap(tensor.dataAsUnsignedByteArray))
        else -> throw DecoderError("${source.artifact.name} gave ${tensor.dtype()}; FLOAT, HALF or UINT8 is wanted.")
    }
}

/**
 * A segment. States are kept in buffers of their own: a program reads its inputs where they lie, and would write new
 * states over those that it still reads if it were handed back the memory that it gave them in.
 */
internal class ExecuTorchProgram(source: DecoderSource, private val segment: StreamPlan.Segment) : StreamProgram {
    override val runtimeVersion: String? = null
    override val threads: Long? = source.threads?.toLong()
    private val method = ExecuTorchMethod(
        source.bundle.locate("${source.artifact.path}/${segment.program}"), segment.program, source.method.name,
        source.threads,
    )
    private val dtype = StreamDtype.of(source.artifact.inputDtype)
    private val states = segment.states.map { StreamFrames.direct(dtype.bytesEach * it.fold(1, Int::times)) }
    private var inputs: Array<EValue>? = null

    override fun restart(held: ByteBuffer?) {
        val zeros = ByteArray(8192)
        for (state in states) {
            while (state.hasRemaining()) state.put(zeros, 0, minOf(zeros.size, state.remaining()))
            state.clear()
        }
        if (held != null) states[0].putLast(held)
    }

    override fun call(x: ByteBuffer, selects: List<ByteBuffer>, y: ByteBuffer) {
        val bound = inputs ?: bind(x, selects).also { inputs = it }
        val results = method.run(bound, 1 + segment.states.size)
        val made = results[0].toTensor()
        if (made.dtype() != if (dtype == StreamDtype.FLOAT32) DType.FLOAT else DType.HALF) {
            throw DecoderError("${segment.program} gave ${made.dtype()}; $dtype is wanted.")
        }
        if (made.numel() * dtype.bytesEach != y.capacity().toLong()) {
            throw DecoderError("${segment.program} gave ${made.numel()} values; ${segment.output} is wanted.")
        }
        copy(made, y)
        states.forEachIndexed { index, state -> copy(results[1 + index].toTensor(), state) }
    }

    override fun close() = method.close()

    private fun bind(x: ByteBuffer, selects: List<ByteBuffer>): Array<EValue> {
        val matrices = segment.convs.mapIndexed { index, conv ->
            val size = segment.selectSize(conv)
            value(selects[index], listOf(1, size, size))
        }
        return (listOf(value(x, segment.input)) + matrices + states.zip(segment.states, ::value)).toTypedArray()
    }

    private fun copy(from: Tensor, to: ByteBuffer) =
        if (dtype == StreamDtype.FLOAT32) from.copyDataInto(to.asFloatBuffer()) else from.copyDataInto(to.asShortBuffer())

    private fun value(bytes: ByteBuffer, shape: List<Int>): EValue {
        val dims = shape.toLongs()
        return EValue.from(
            if (dtype == StreamDtype.FLOAT32) Tensor.fromBlob(bytes.asFloatBuffer(), dims)
            else Tensor.fromBlob(bytes.asShortBuffer(), dims),
        )
    }
}
