package dev.handheld

import java.io.Closeable
import java.io.File
import java.nio.ByteBuffer

/**
 * A loaded segment, which keeps its state between calls in its runtime's own memory. Buffers are direct, in native order,
 * of the plan's shapes, and the same ones in every call.
 */
interface StreamProgram : Closeable {
    /** Of the runtime's library, null where it does not say. */
    val runtimeVersion: String?

    /** CPU threads that it runs on, null where it does not say. */
    val threads: Long?

    /**
     * Begins another clip, or another strip of it: the state is zeros, but for the last frames of the first convolution's,
     * which are `held`. Called before the clip's first call.
     */
    fun restart(held: ByteBuffer?)

    /** Runs once. The state of the next call is what this one makes of it. */
    fun call(x: ByteBuffer, selects: List<ByteBuffer>, y: ByteBuffer)
}

/**
 * Decodes clips of any length by a plan, in memory that does not grow with the clip. One call at a time.
 *
 * Programs of one pass stay loaded; of several, each loads its own and releases them before the next, and what is
 * between them lies in files in `scratch`, which are gone at the end.
 *
 * @param latentShape channels, height and width.
 * @param taken converts the latents of a clip to those that the programs take.
 * @throws DecoderError where a program cannot be loaded, in [decode] also where it cannot be run.
 */
class StreamDecoder(
    private val plan: StreamPlan,
    private val latentShape: List<Int>,
    private val dtype: StreamDtype,
    private val scratch: File,
    private val taken: (LatentFrames) -> LatentFrames = { it },
    private val load: (StreamPlan.Segment) -> StreamProgram,
) : Closeable {
    private var isClosed = false
    private var kept: Chain? = if (plan.passes.size == 1) chain(plan.passes[0]) else null

    /** Of the runtime's library and its threads, where they say: after loading. */
    var runtimeVersion: String? = kept?.runtimeVersion
        private set
    var threads: Long? = kept?.threads
        private set

    /** Frames that a clip of `latents` latent frames has. */
    fun length(latents: Long): Long = plan.length(latents)

    /**
     * Decodes a whole clip; frames are given in order, as they become final.
     *
     * @param goOn asked before every call of a program; false ends the clip where it is.
     * @return whether the clip came to its end.
     */
    fun decode(latents: LatentFrames, goOn: () -> Boolean = { true }, onFrames: (DecodedFrames) -> Unit): Boolean {
        if (isClosed) throw DecoderError("The decoder is closed. Open another one.")
        latents.check(latentShape)
        var source: FrameSource = taken(latents)
        var spool: Spool? = null
        try {
            for (part in plan.passes) {
                val isLast = part === plan.passes.last()
                val made = if (isLast && part.strips.size == 1) null else Spool(part.output, dtype, scratch)
                val before = spool
                spool = made
                before.use {
                    if (!decode(part, source, made, goOn, if (isLast) onFrames else null)) return false
                }
                if (made != null) source = made
            }
            return true
        } finally {
            spool?.close()
        }
    }

    override fun close() {
        isClosed = true
        kept?.close()
        kept = null
    }

    /** One pass, strip after strip: into a spool, to the listener, or both. */
    private fun decode(
        part: StreamPlan.Pass, source: FrameSource, spool: Spool?, goOn: () -> Boolean, onFrames: ((DecodedFrames) -> Unit)?,
    ): Boolean {
        val chain = kept ?: chain(part)
        try {
            // With its last strip a frame is whole, and read from the spool.
            val whole = if (spool == null || onFrames == null) null else part.output.let { StreamFrames(1, it[0], it[1], it[2], dtype) }
            for (strip in part.strips) {
                var done = 0L
                val ended = chain.run(strip, source, goOn) { frames, first, count, row ->
                    if (spool == null) {
                        onFrames?.invoke(DecodedFrames(frames, first, count, row, strip.rows))
                        return@run
                    }
                    spool.write(frames, first, count, row, strip.rows, done, strip.firstRow)
                    if (whole != null && strip === part.strips.last()) {
                        for (frame in done until done + count) {
                            spool.read(frame, 1, 0, whole, 0)
                            onFrames?.invoke(DecodedFrames(whole, 0, 1, 0, whole.rows))
                        }
                    }
                    done += count
                }
                if (!ended) return false
            }
            return true
        } finally {
            if (chain !== kept) chain.close()
        }
    }

    private fun chain(part: StreamPlan.Pass): Chain {
        val programs = ArrayList<StreamProgram>()
        try {
            part.segments.mapTo(programs, load)
            return Chain(part, programs, dtype).also {
                runtimeVersion = it.runtimeVersion
                threads = it.threads
            }
        } catch (error: Throwable) {
            programs.forEach { it.close() }
            throw error
        }
    }
}

/** Takes frames `first` to `first + count` of `frames`, from row `row` on. */
private typealias Sink = (frames: StreamFrames, first: Int, count: Int, row: Int) -> Unit

/** The loaded segments of a pass. */
private class Chain(private val part: StreamPlan.Pass, programs: List<StreamProgram>, dtype: StreamDtype) : Closeable {
    private val stages = part.segments.zip(programs) { segment, program -> Stage(segment, program, dtype) }
    val runtimeVersion = programs.first().runtimeVersion
    val threads = programs.first().threads

    /** Decodes a strip of a whole clip; false where it was ended. */
    fun run(strip: StreamPlan.Strip, source: FrameSource, goOn: () -> Boolean, sink: Sink): Boolean {
        stages.forEach { it.restart() }
        return Flow(strip, goOn, sink).run(source)
    }

    override fun close() = stages.forEach { it.program.close() }

    /** A clip's way through the stages, depth first. What returns a Boolean says whether to go on. */
    private inner class Flow(private val strip: StreamPlan.Strip, private val goOn: () -> Boolean, private val sink: Sink) {
        fun run(source: FrameSource): Boolean {
            if (source.count < 1) throw DecoderError("No latents to decode: one frame or more are needed.")
            val stage = stages[0]
            var done = 0L
            while (done < source.count) {
                val count = minOf(stage.room.toLong(), source.count - done).toInt()
                source.read(done, count, strip.starts[0], stage.into, stage.place)
                stage.filled += count
                done += count
                if (stage.isFull && !call(0, null)) return false
            }
            return stages.indices.all(::finish)
        }

        /** Frames `first` to `first + count` of what the stage before `index` made. */
        private fun push(index: Int, frames: StreamFrames, first: Int, count: Int): Boolean {
            // Where the next window, or at the end the strip, begins in those frames.
            val row = (strip.starts.getOrNull(index) ?: strip.firstRow) -
                strip.starts[index - 1] * part.segments[index - 1].scale
            val stage = stages.getOrNull(index)
            if (stage == null) {
                sink(frames, first, count, row)
                return true
            }
            var taken = 0
            while (taken < count) {
                val piece = minOf(stage.room, count - taken)
                stage.into.take(frames, first + taken, piece, row, stage.place)
                stage.filled += piece
                taken += piece
                if (stage.isFull && !call(index, null)) return false
            }
            return true
        }

        private fun call(index: Int, total: Long?): Boolean {
            if (!goOn()) return false
            val stage = stages[index]
            stage.call(total)
            return stage.validCount == 0 || push(index + 1, stage.y, stage.validFrom, stage.validCount)
        }

        private fun finish(index: Int): Boolean {
            val stage = stages[index]
            val total = stage.taken
            while (stage.calls < stage.segment.calls(total)) {
                stage.pad()
                if (!call(index, total)) return false
            }
            return true
        }
    }
}

/** A segment on one strip of one clip. */
private class Stage(val segment: StreamPlan.Segment, val program: StreamProgram, dtype: StreamDtype) {
    private val x = segment.input.let { StreamFrames(it[0], it[1], it[2], it[3], dtype) }

    /** The clip's first frames, where they go to the state. */
    private val held =
        if (segment.lead < 0) segment.input.let { StreamFrames(-segment.lead, it[1], it[2], it[3], dtype) } else null
    val y = segment.output.let { StreamFrames(it[0], it[1], it[2], it[3], dtype) }
    private val selects = segment.convs.map { Select(segment, it, dtype) }
    private val selectBytes = selects.map { it.matrix.bytes }
    var calls = 0L
        private set

    /** Frames of x that are in place. Negative: so many are held before. */
    var filled = 0
    val isFull: Boolean get() = filled == segment.chunk

    /** Where the next frames go, from which place on, and how many of them. */
    val into: StreamFrames get() = if (filled < 0) held!! else x
    val place: Int get() = if (filled < 0) filled - segment.lead else filled
    val room: Int get() = into.count - place

    /** Frames of the clip so far. */
    val taken: Long get() = calls * segment.chunk + filled - segment.lead

    /** Which of the last call's frames are the clip's. */
    var validFrom = 0
        private set
    var validCount = 0
        private set

    fun restart() {
        calls = 0
        filled = segment.lead
    }

    /** Fills x behind the end of the clip. Any finite frames do: the selects leave them out. */
    fun pad() {
        val last = if (filled > 0) filled - 1 else segment.chunk - 1 // of this call, else of the one before
        for (place in maxOf(filled, 0) until segment.chunk) if (place != last) x.repeat(last, place)
    }

    fun call(total: Long?) {
        if (calls == 0L) program.restart(held?.bytes)
        selects.forEach { it.set(calls, total) }
        program.call(x.bytes, selectBytes, y.bytes)
        validFrom = segment.validFrom(calls)
        validCount = maxOf(0, segment.validUntil(calls, total) - validFrom)
        calls++
        filled = 0
    }
}

/** The 0/1 matrix in front of a convolution. Most calls want that of the call before. */
private class Select(private val segment: StreamPlan.Segment, private val conv: StreamPlan.TimeConv, dtype: StreamDtype) {
    private val size = segment.selectSize(conv)
    val matrix = StreamFrames(1, 1, size, size, dtype)
    private val columns = IntArray(size)
    private val wanted = IntArray(size)

    init {
        for (row in 0 until size) matrix[row * size] = 1f // as `columns` says
    }

    fun set(call: Long, frames: Long?) {
        segment.sources(conv, call, frames, wanted)
        for (row in 0 until size) {
            if (wanted[row] == columns[row]) continue
            matrix[row * size + columns[row]] = 0f
            matrix[row * size + wanted[row]] = 1f
            columns[row] = wanted[row]
        }
    }
}
