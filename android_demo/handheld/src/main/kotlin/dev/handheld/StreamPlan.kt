package dev.handheld

/**
 * How a streamed artefact is run: programs of fixed shapes, called one chunk of frames after the other.
 *
 * `docs/streaming.md` describes the protocol. Which of a call's frames belong to the clip, and what the 0/1 matrices in
 * front of the time convolutions must be, follows from the whole numbers in here.
 */
data class StreamPlan(val passes: List<Pass>) {
    /**
     * A stream of frames inside a segment, against the segment's input: `rate` frames per frame of the input, `delay`
     * of them before the clip's first one, negative where the clip begins earlier; a clip of T input frames has
     * T * rate - dropped of them.
     */
    data class Timeline(val rate: Int, val delay: Int, val dropped: Int) {
        /** Index in the clip of the first frame of a call; negative before the clip. */
        fun first(call: Long, chunk: Int): Long = call * chunk * rate - delay

        fun length(frames: Long): Long {
            if (frames > Long.MAX_VALUE / rate) throw ArithmeticException("$frames frames at rate $rate")
            return frames * rate - dropped
        }
    }

    /** A convolution over time: its taps, and the stream that it reads. */
    data class TimeConv(val kernel: Int, val at: Timeline)

    /**
     * One program. Its tensors are frames-first: (frames, channels, height, width).
     *
     * @property program file or folder, relative to the artefact.
     * @property lead frames of the first call's x before the clip's first one. Negative: so many of the clip's first
     * frames are the last of the first call's first state, and x begins behind them.
     * @property halo rows of y that are wrong at an edge of the window that is no edge of the frame.
     */
    data class Segment(
        val program: String, val input: List<Int>, val output: List<Int>, val lead: Int, val convs: List<TimeConv>,
        val states: List<List<Int>>, val end: Timeline, val halo: Int,
    ) {
        val chunk: Int get() = input[0]
        val scale: Int get() = output[2] / input[2]

        /** Side of a convolution's square select. */
        fun selectSize(conv: TimeConv): Int = conv.kernel - 1 + chunk * conv.at.rate

        /** Calls until every frame of a clip of `frames` input frames has come out. */
        fun calls(frames: Long): Long = (end.length(frames) + end.delay + output[0] - 1) / output[0]

        /** First of a call's frames that belongs to the clip. */
        fun validFrom(call: Long): Int = (-end.first(call, chunk)).coerceIn(0, output[0].toLong()).toInt()

        /** One behind the last; `frames` is null while the clip's end is not known. Not above [validFrom]: none. */
        fun validUntil(call: Long, frames: Long?): Int =
            if (frames == null) output[0] else (end.length(frames) - end.first(call, chunk)).coerceIn(0, output[0].toLong()).toInt()

        /** For each row of a convolution's select the column that holds the one. */
        fun sources(conv: TimeConv, call: Long, frames: Long?, into: IntArray) {
            val first = conv.at.first(call, chunk) - (conv.kernel - 1)
            val last = if (frames == null) Long.MAX_VALUE else conv.at.length(frames) - 1
            for (row in into.indices) {
                val source = minOf(maxOf(first + row, 0), last)
                into[row] = minOf(maxOf(source - first, 0), into.size - 1L).toInt()
            }
        }
    }

    /**
     * Rows of the frame that are decoded together, all frames of the clip, before the next strip. `starts` is the first
     * row of each segment's window, in rows of that segment's input.
     */
    data class Strip(val starts: List<Int>, val firstRow: Int, val rows: Int)

    /** Segments that run together, frames going through all of them before the next ones are read. */
    data class Pass(val segments: List<Segment>, val strips: List<Strip>) {
        /** Channels, height and width of the frames that it makes. */
        val output: List<Int>
            get() = segments.last().output.let { listOf(it[1], strips.last().run { firstRow + rows }, it[3]) }

        fun length(frames: Long): Long = segments.fold(frames) { count, segment -> segment.end.length(count) }
    }

    /** Frames that a clip of `frames` latent frames has. */
    fun length(frames: Long): Long = passes.fold(frames) { count, part -> part.length(count) }

    /** What contradicts itself, or the latents (C, H', W') and frames (C, H, W) of the bundle. */
    internal fun faults(latents: List<Long>, frames: List<Long>): List<String> {
        val programs = passes.flatMap { part -> part.segments.map { it.program } }
        val twice = programs.groupBy { it }.filterValues { it.size > 1 }.keys.map { "passes: program \"$it\" is used twice" }
        var shape = latents
        passes.forEachIndexed { index, part ->
            part.fault(shape)?.let { return twice + "passes[$index].$it" }
            shape = part.output.map { it.toLong() }
        }
        return if (shape == frames) twice else twice + "passes: they make frames of $shape, the bundle has $frames"
    }
}

internal fun Field.streamPlan() = record("passes") { plan -> StreamPlan(plan("passes").list(1) { it.pass() }) }

private fun Field.pass() = record("segments", "strips") { part ->
    StreamPlan.Pass(part("segments").list(1) { it.segment() }, part("strips").list(1) { it.strip() })
}

private fun Field.segment() =
    record("program", "units", "input", "output", "lead", "convs", "states", "end", "halo") { field ->
        field("units").list(1) { it.text() }
        StreamPlan.Segment(
            program = field("program").relativePath(),
            input = field("input").dims(),
            output = field("output").dims(),
            lead = field("lead").int(-LARGEST),
            convs = field("convs").list { conv ->
                conv.record("kernel", "at") { StreamPlan.TimeConv(it("kernel").int(2), it("at").timeline()) }
            },
            states = field("states").list { it.dims() },
            end = field("end").timeline(),
            halo = field("halo").int(),
        )
    }

private fun Field.timeline() =
    record("rate", "delay", "dropped") { StreamPlan.Timeline(it("rate").int(1), it("delay").int(-LARGEST), it("dropped").int()) }

private fun Field.strip() = record("starts", "first_row", "rows") { field ->
    StreamPlan.Strip(field("starts").list(1) { it.int() }, field("first_row").int(), field("rows").int(1))
}

private fun Field.dims() = list(1) { it.int(1) }

// What no buffer holds is refused here, and no product below leaves 64 bits.
private const val LARGEST = Int.MAX_VALUE.toLong()

private fun Field.int(least: Long = 0): Int = integer(least, LARGEST).toInt()

private fun StreamPlan.Pass.fault(shape: List<Long>): String? {
    var (channels, height, width) = shape
    val heights = mutableListOf(height)
    segments.forEachIndexed { index, segment ->
        segment.fault()?.let { return "segments[$index]: $it" }
        val (_, takes, rows, columns) = segment.input
        if (takes.toLong() != channels || columns.toLong() != width || rows > heights.last()) {
            return "segments[$index].input: ${segment.input} does not take frames of ${listOf(channels, heights.last(), width)}"
        }
        channels = segment.output[1].toLong()
        width = segment.output[3].toLong()
        height = heights.last() * segment.scale
        if (height > Int.MAX_VALUE) return "segments[$index]: frames of $height rows"
        heights += height
    }
    var row = 0L
    strips.forEachIndexed { index, strip ->
        fault(strip, heights)?.let { return "strips[$index]: $it" }
        if (strip.firstRow.toLong() != row) return "strips[$index].first_row: ${strip.firstRow}, the strip before ends at $row"
        row += strip.rows
    }
    return if (row == height) null else "strips: they cover $row rows of $height"
}

/** Why a strip's windows do not give its rows. */
private fun StreamPlan.Pass.fault(strip: StreamPlan.Strip, heights: List<Long>): String? {
    if (strip.starts.size != segments.size) return "${strip.starts.size} starts for ${segments.size} segments"
    val wanted = strip.starts.zip(segments) { start, segment -> start.toLong() to start.toLong() + segment.input[2] } +
        (strip.firstRow.toLong() to strip.firstRow.toLong() + strip.rows)
    if (wanted[0].second > heights[0]) return "the first window ends at row ${wanted[0].second} of ${heights[0]}"
    segments.forEachIndexed { index, segment ->
        val top = (wanted[index].first * segment.scale).let { if (it > 0) it + segment.halo else it }
        val bottom = (wanted[index].second * segment.scale).let { if (it < heights[index + 1]) it - segment.halo else it }
        val (first, stop) = wanted[index + 1]
        if (first < top || stop > bottom) {
            return "rows $first to $stop are needed of segment $index, which gives $top to $bottom"
        }
    }
    return null
}

private fun StreamPlan.Segment.fault(): String? {
    if (input.size != 4 || output.size != 4 || states.any { it.size != 4 }) return "4 dimensions are needed"
    val selects = convs.map { conv -> (conv.kernel - 1L + chunk.toLong() * conv.at.rate).let { listOf(it, it) } }
    val absurd = (listOf(input, output) + states).map { shape -> shape.map { it.toLong() } }.plus(selects).find { !it.fits() }
    return when {
        absurd != null -> "a tensor of $absurd is more than a buffer holds"
        output[0].toLong() != chunk.toLong() * end.rate -> "its chunk and rate are not the frames of the output"
        output[2] % input[2] != 0 || output[3].toLong() != input[3].toLong() * scale -> "height and width grow unlike"
        states.map { it[0] } != convs.map { it.kernel - 1 } -> "states that are not kernel - 1 frames, one for each convolution"
        lead >= chunk -> "a lead of $lead frames leaves none of $chunk for the clip"
        lead < 0 && !keepsEarly() -> "a lead of $lead frames, and no first convolution that keeps as many frames of x"
        end.delay < 0 || convs.drop(if (lead < 0) 1 else 0).any { it.at.delay < 0 } ->
            "a negative delay: only what reads x may be early, by a lead"
        else -> null
    }
}

private fun StreamPlan.Segment.keepsEarly(): Boolean =
    convs.firstOrNull()?.at == StreamPlan.Timeline(1, lead, 0) && states[0].drop(1) == input.drop(1) && states[0][0] >= -lead

/** Whether a tensor of fp32 fits a buffer. */
private fun List<Long>.fits(): Boolean =
    fold(4L) { size, extent -> if (size > Int.MAX_VALUE || extent > Int.MAX_VALUE) return false else size * extent } <= Int.MAX_VALUE
