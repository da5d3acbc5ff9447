package dev.handheld

import org.pytorch.executorch.DType
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** A `.pte`. Methods go by name, inputs and outputs by position. */
internal class ExecuTorchDecoder(private val source: DecoderSource, override val computeUnits: String) : VideoDecoder {
    override val runtimeVersion: String? = null // the library does not say
    override val threads: Long? = source.threads?.toLong()

    private val module: Module = guarded("load") {
        // Mapped: weights count as clean pages, which the system may drop and read again.
        Module.load(
            source.bundle.locate(source.artifact.path).path, Module.LOAD_MODE_MMAP, source.threads ?: RUNTIMES_CHOICE,
        )
    }

    init {
        try {
            guarded("load") { module.loadMethod(source.method.name) }
        } catch (error: DecoderError) {
            module.destroy()
            throw error
        }
    }

    override fun run(inputs: List<FloatArray>): List<FloatArray> {
        val values = inputs.zip(source.method.inputs) { input, shape -> EValue.from(tensor(input, shape)) }
        val outputs = guarded("run") { module.execute(source.method.name, *values.toTypedArray()) }
        if (outputs.size != source.method.outputs.size) {
            throw DecoderError("${source.artifact.name} gave ${outputs.size} outputs, not ${source.method.outputs.size}.")
        }
        return outputs.map { floats(it.toTensor()) }
    }

    override fun close() = module.destroy()

    private fun tensor(values: FloatArray, shape: List<Long>): Tensor {
        val dims = shape.toLongArray()
        if (source.artifact.inputDtype == Manifest.FLOAT32) return Tensor.fromBlob(values, dims)
        return Tensor.fromBlob(ShortArray(values.size) { floatToHalf(values[it]) }, dims)
    }

    private fun floats(tensor: Tensor): FloatArray = when (tensor.dtype()) {
        DType.FLOAT -> tensor.dataAsFloatArray
        DType.HALF -> tensor.dataAsShortArray.let { halves -> FloatArray(halves.size) { halfToFloat(halves[it]) } }
        else -> throw DecoderError("${source.artifact.name} gave ${tensor.dtype()}; FLOAT or HALF is wanted.")
    }

    // The library throws RuntimeException and its subclasses; a missing native library is a LinkageError.
    private fun <T> guarded(what: String, body: () -> T): T = try {
        body()
    } catch (error: RuntimeException) {
        throw DecoderError("ExecuTorch cannot $what ${source.artifact.name}: ${error.message}", error)
    } catch (error: LinkageError) {
        throw DecoderError("ExecuTorch is not in this app: ${error.message}", error)
    }

    private companion object {
        const val RUNTIMES_CHOICE = 0
    }
}
