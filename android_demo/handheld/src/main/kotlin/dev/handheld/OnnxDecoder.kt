package dev.handheld

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.ShortBuffer

/** A `.onnx` file, or a folder of `model.onnx` and its weights, on the CPU. Inputs and outputs go by name. */
internal class OnnxDecoder(private val source: DecoderSource) : VideoDecoder {
    private val environment: OrtEnvironment = guarded("load") { OrtEnvironment.getEnvironment() }
    override val runtimeVersion: String? = environment.version
    override val threads: Long = (source.threads ?: Runtime.getRuntime().availableProcessors()).toLong()
    override val computeUnits: String = "cpu"

    private val session: OrtSession = guarded("load") {
        val path = source.bundle.locate(source.artifact.path)
        OrtSession.SessionOptions().use { options ->
            options.setIntraOpNumThreads(threads.toInt())
            options.setInterOpNumThreads(1)
            // As on the host: memory before the last few percent of speed.
            options.setMemoryPatternOptimization(false)
            // Idle threads of the pool must not burn the battery between two runs.
            options.addConfigEntry("session.force_spinning_stop", "1")
            environment.createSession((if (path.isDirectory) File(path, "model.onnx") else path).path, options)
        }
    }

    override fun run(inputs: List<FloatArray>): List<FloatArray> = guarded("run") {
        val manifest = source.bundle.manifest
        val tensors = LinkedHashMap<String, OnnxTensor>()
        try {
            manifest.inputs.forEachIndexed { index, spec ->
                tensors[spec.name] = tensor(inputs[index], source.method.inputs[index].toLongArray())
            }
            session.run(tensors, manifest.outputs.map { it.name }.toSet()).use { result ->
                val outputs = result.associate { (name, value) -> name to floats(value as OnnxTensor) }
                manifest.outputs.map { spec -> outputs.getValue(spec.name) }
            }
        } finally {
            tensors.values.forEach { it.close() }
        }
    }

    override fun close() = session.close()

    private fun tensor(values: FloatArray, shape: LongArray): OnnxTensor {
        if (source.artifact.inputDtype == Manifest.FLOAT32) {
            return OnnxTensor.createTensor(environment, FloatBuffer.wrap(values), shape)
        }
        val halves: ShortBuffer =
            ByteBuffer.allocateDirect(2 * values.size).order(ByteOrder.nativeOrder()).asShortBuffer()
        for (index in values.indices) halves.put(index, floatToHalf(values[index]))
        return OnnxTensor.createTensor(environment, halves, shape, OnnxJavaType.FLOAT16)
    }

    private fun floats(tensor: OnnxTensor): FloatArray {
        val buffer = tensor.floatBuffer // of fp16 tensors too: the library widens them
        return FloatArray(buffer.remaining()).also { buffer.get(it) }
    }

    private fun <T> guarded(what: String, body: () -> T): T = try {
        body()
    } catch (error: OrtException) {
        throw DecoderError("ONNX Runtime cannot $what ${source.artifact.name}: ${error.message}", error)
    } catch (error: LinkageError) {
        throw DecoderError("ONNX Runtime is not in this app: ${error.message}", error)
    }
}
