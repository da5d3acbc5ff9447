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

/** One graph, a `.onnx` file or a file of that name in a folder with its weights, on the CPU. */
private class OnnxGraph(
    path: File, val name: String, asked: Int?, isSegment: Boolean, file: String = "model.onnx",
) : AutoCloseable {
    val environment: OrtEnvironment = guarded("load") { OrtEnvironment.getEnvironment() }
    val version: String? = environment.version
    val threads: Long = (asked ?: Runtime.getRuntime().availableProcessors()).toLong()

    val session: OrtSession = guarded("load") {
        OrtSession.SessionOptions().use { options ->
            options.setIntraOpNumThreads(threads.toInt())
            options.setInterOpNumThreads(1)
            // As on the host: memory before the last few percent of speed.
            options.setMemoryPatternOptimization(false)
            // Idle threads of the pool must not burn the battery between two runs.
            options.addConfigEntry("session.force_spinning_stop", "1")
            // Segments take turns: the threads of one would spin while the next one computes.
            if (isSegment) options.addConfigEntry("session.intra_op.allow_spinning", "0")
            environment.createSession((if (path.isDirectory) File(path, file) else path).path, options)
        }
    }

    override fun close() = session.close()

    fun <T> guarded(what: String, body: () -> T): T = try {
        body()
    } catch (error: OrtException) {
        throw DecoderError("ONNX Runtime cannot $what $name: ${error.message}", error)
    } catch (error: LinkageError) {
        throw DecoderError("ONNX Runtime is not in this app: ${error.message}", error)
    }
}

/** Inputs and outputs go by name. */
internal class OnnxDecoder(private val source: DecoderSource, override val computeUnits: String) : VideoDecoder {
    private val graph = OnnxGraph(
        source.bundle.locate(source.artifact.path), source.artifact.name, source.threads, false,
        // Each further shape is a graph of its own over the same weights.
        if (source.method == source.artifact.methods.first()) "model.onnx" else "${source.method.name}.onnx",
    )
    override val runtimeVersion: String? = graph.version
    override val threads: Long = graph.threads

    override fun run(inputs: List<FloatArray>): List<Output> = graph.guarded("run") {
        val manifest = source.bundle.manifest
        val tensors = LinkedHashMap<String, OnnxTensor>()
        try {
            manifest.inputs.forEachIndexed { index, spec ->
                tensors[spec.name] = tensor(inputs[index], source.method.inputs[index].toLongArray())
            }
            graph.session.run(tensors, manifest.outputs.map { it.name }.toSet()).use { result ->
                val outputs = result.associate { (name, value) -> name to output(value as OnnxTensor) }
                manifest.outputs.map { spec -> outputs.getValue(spec.name) }
            }
        } finally {
            tensors.values.forEach { it.close() }
        }
    }

    override fun close() = graph.close()

    private fun tensor(values: FloatArray, shape: LongArray): OnnxTensor {
        if (source.artifact.inputDtype == Manifest.FLOAT32) {
            return OnnxTensor.createTensor(graph.environment, FloatBuffer.wrap(values), shape)
        }
        val halves: ShortBuffer =
            ByteBuffer.allocateDirect(2 * values.size).order(ByteOrder.nativeOrder()).asShortBuffer()
        for (index in values.indices) halves.put(index, floatToHalf(values[index]))
        return OnnxTensor.createTensor(graph.environment, halves, shape, OnnxJavaType.FLOAT16)
    }

    private fun output(tensor: OnnxTensor): Output {
        if (tensor.info.type == OnnxJavaType.UINT8) return Output(tensor.byteBuffer)
        val buffer = tensor.floatBuffer // of fp16 tensors too: the library widens them
        return Output(FloatArray(buffer.remaining()).also { buffer.get(it) })
    }
}

/**
 * A segment. x, the selects and y are the caller's buffers, which the runtime reads and writes itself; states are what the
 * runtime gave, handed back as they are, never copied.
 */
internal class OnnxProgram(source: DecoderSource, private val segment: StreamPlan.Segment) : StreamProgram {
    private val graph = OnnxGraph(
        source.bundle.locate("${source.artifact.path}/${segment.program}"), segment.program, source.threads, true,
    )
    override val runtimeVersion: String? = graph.version
    override val threads: Long = graph.threads
    private val type = if (source.artifact.inputDtype == Manifest.FLOAT32) OnnxJavaType.FLOAT else OnnxJavaType.FLOAT16
    private val dtype = StreamDtype.of(source.artifact.inputDtype)
    private val inputs = LinkedHashMap<String, OnnxTensor>()
    private val output = LinkedHashMap<String, OnnxTensor>()
    private val newStates = segment.states.indices.map { "new_state_$it" }.toSet()

    /** What holds the states among `inputs`: zeros before a clip's first call, then the results of the last one. */
    private var states: List<AutoCloseable> = emptyList()

    override fun restart(held: ByteBuffer?) = graph.guarded("run") {
        states.forEach { it.close() }
        // Nothing writes to a state: zeros are the same memory for all of them.
        val sizes = segment.states.map { dtype.bytesEach * it.fold(1, Int::times) }
        val zeros = StreamFrames.direct(sizes.maxOrNull() ?: 0)
        states = segment.states.mapIndexed { index, shape ->
            val state = if (index == 0 && held != null) StreamFrames.direct(sizes[0]).putLast(held) else zeros.limit(sizes[index])
            OnnxTensor.createTensor(graph.environment, state as ByteBuffer, shape.toLongs(), type).also { inputs["state_$index"] = it }
        }
    }

    override fun call(x: ByteBuffer, selects: List<ByteBuffer>, y: ByteBuffer) = graph.guarded("run") {
        if (output.isEmpty()) bind(x, selects, y)
        val result = graph.session.run(inputs, newStates, output)
        states.forEach { it.close() }
        states = listOf(result)
        for ((name, value) in result) if (name in newStates) inputs[name.removePrefix("new_")] = value as OnnxTensor
    }

    override fun close() {
        states.forEach { it.close() }
        inputs.filterKeys { !it.startsWith("state_") }.values.forEach { it.close() }
        output.values.forEach { it.close() }
        graph.close()
    }

    private fun bind(x: ByteBuffer, selects: List<ByteBuffer>, y: ByteBuffer) {
        inputs["x"] = OnnxTensor.createTensor(graph.environment, x, segment.input.toLongs(), type)
        segment.convs.forEachIndexed { index, conv ->
            val size = segment.selectSize(conv).toLong()
            val shape = longArrayOf(1, size, size)
            inputs["select_$index"] = OnnxTensor.createTensor(graph.environment, selects[index], shape, type)
        }
        output["y"] = OnnxTensor.createTensor(graph.environment, y, segment.output.toLongs(), type)
    }
}

internal fun List<Int>.toLongs() = LongArray(size) { this[it].toLong() }
