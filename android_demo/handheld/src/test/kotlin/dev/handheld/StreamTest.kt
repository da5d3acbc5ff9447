package dev.handheld

import java.io.File
import java.nio.ByteBuffer
import java.nio.file.Files
import kotlin.math.abs
import kotlin.math.sin
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

/** The driver of streamed plans over small programs whose whole-clip result is computed beside them. */
class StreamTest {
    private val scratch: File = Files.createTempDirectory("spools").toFile()
    private val loaded = ArrayList<String>()

    @AfterTest
    fun clean() {
        scratch.deleteRecursively()
    }

    /** Three channels of box filters over time and rows; the frames double after the first filter. */
    private inner class Box(private val segment: StreamPlan.Segment) : StreamProgram {
        override val runtimeVersion = null
        override val threads = 1L
        private val plane = 3 * segment.input[2] * segment.input[3]
        private var states = emptyList<FloatArray>()

        init {
            loaded += segment.program
        }

        override fun restart(held: ByteBuffer?) {
            states = segment.states.map { shape -> FloatArray(shape.fold(1, Int::times)) }
            assertEquals(-minOf(segment.lead, 0) * plane, (held?.capacity() ?: 0) / 4)
            held?.asFloatBuffer()?.get(states[0], states[0].size + segment.lead * plane, -segment.lead * plane)
        }

        override fun call(x: ByteBuffer, selects: List<ByteBuffer>, y: ByteBuffer) {
            var stream = FloatArray(x.capacity() / 4).also { x.asFloatBuffer().get(it) }
            val next = ArrayList<FloatArray>()
            segment.convs.forEachIndexed { index, conv ->
                val held = states[index] + stream
                next += held.copyOfRange(held.size - (conv.kernel - 1) * plane, held.size)
                val size = segment.selectSize(conv)
                val select = FloatArray(size * size).also { selects[index].asFloatBuffer().get(it) }
                val window = FloatArray(held.size)
                for (row in 0 until size) {
                    val column = (0 until size).single { select[row * size + it] == 1f }
                    held.copyInto(window, row * plane, column * plane, (column + 1) * plane)
                }
                stream = blur(box(window, plane), segment.input[2], segment.input[3])
                if (conv.at.rate != segment.end.rate) stream = doubled(stream, plane)
            }
            states = next
            y.asFloatBuffer().put(stream)
        }

        override fun close() {
            loaded -= segment.program
        }
    }

    @Test
    fun anyLengthInPassesAndStripsIsTheWholeClip() {
        for (plan in listOf(onePass, passesOfStrips, early)) {
            assertEquals(emptyList(), plan.faults(listOf(3, 8, 2), listOf(3, 8, 2)))
            decoder(plan).use { decoder ->
                for (count in 1..7) {
                    // Twice: nothing of a clip is left for the next one.
                    repeat(2) { assertClose(whole(clip(count), count), decoded(decoder, clip(count), count), "$count frames") }
                }
            }
            assertEquals(emptyList(), loaded, "programs that were not released")
        }
        assertEquals(emptyList(), scratch.list().orEmpty().toList())
    }

    @Test
    fun programsOfAPassAreReleasedBeforeTheNextIsLoaded() {
        var most = 0
        StreamDecoder(passesOfStrips, LATENTS, StreamDtype.FLOAT32, scratch) { segment ->
            Box(segment).also { most = maxOf(most, loaded.size) }
        }.use { decoded(it, clip(3), 3) }
        assertEquals(1, most)
    }

    @Test
    fun aClipThatIsEndedGivesNoMoreFramesAndLeavesNothing() {
        for (plan in listOf(onePass, passesOfStrips)) {
            decoder(plan).use { decoder ->
                var calls = 0
                assertTrue(!decoder.decode(LatentFrames(clip(5), shape(5)), { ++calls < 4 }) {})
                assertEquals(4, calls)
                assertClose(whole(clip(2), 2), decoded(decoder, clip(2), 2), "the clip after it")
            }
        }
        assertEquals(emptyList(), scratch.list().orEmpty().toList())
    }

    @Test
    fun latentsAreRepeatedAsOftenAsItTakes() {
        val twice = FloatArray(6 * 48).also { all ->
            // NCTHW: frames of a channel lie together.
            for (channel in 0 until 3) for (time in 0 until 6) {
                clip(3).copyInto(all, (channel * 6 + time) * 16, (channel * 3 + time % 3) * 16, (channel * 3 + time % 3 + 1) * 16)
            }
        }
        decoder(onePass).use { decoder ->
            assertClose(decoded(decoder, twice, 6), decoded(decoder, LatentFrames(clip(3), shape(3), 6), 6), "repeated")
        }
    }

    @Test
    fun latentsOfAnotherShapeAndADiskThatIsNotThereAreRefused() {
        decoder(onePass).use { decoder ->
            val error = assertFailsWith<DecoderError> {
                decoder.decode(LatentFrames(FloatArray(3 * 4 * 2), listOf(1, 3, 1, 4, 2))) {}
            }
            assertContains(error.message.orEmpty(), "[3, 4, 2]")
        }
        assertFailsWith<BundleError> { LatentFrames(FloatArray(0), listOf(1, 3, 0, 8, 2)) }
        val closed = decoder(onePass).also { it.close() }
        assertFailsWith<DecoderError> { closed.decode(LatentFrames(clip(1), shape(1))) {} }
        StreamDecoder(passesOfStrips, LATENTS, StreamDtype.FLOAT32, File(scratch, "none")) { Box(it) }.use { decoder ->
            val error = assertFailsWith<DecoderError> { decoder.decode(LatentFrames(clip(1), shape(1))) {} }
            assertContains(error.message.orEmpty(), "cannot be written")
        }
        assertEquals(emptyList(), loaded)
    }

    /** Sources and valid frames as the host's scheduler computes them. */
    @Test
    fun schedulesAsTheHostDoes() {
        val cases = tree(File(FIXTURES, "streaming/schedule.json").readBytes())
        val faults = ArrayList<String>()
        val segments = Field(cases["plan"], "plan", faults).streamPlan().passes.flatMap { it.segments }
        assertEquals(emptyList(), faults)
        val calls = (cases["calls"] as List<*>).map { it as Map<*, *> }
        assertTrue(calls.size > 20)
        for (each in calls) {
            val segment = segments[(each["segment"] as Long).toInt()]
            val call = each["call"] as Long
            val frames = each["frames"] as Long?
            val from = segment.validFrom(call).toLong()
            val until = segment.validUntil(call, frames).toLong()
            assertEquals(each["valid"], if (until > from) listOf(from, until) else emptyList<Long>(), "$each")
            val sources = segment.convs.map { conv ->
                IntArray(segment.selectSize(conv)).also { segment.sources(conv, call, frames, it) }.map { it.toLong() }
            }
            assertEquals(each["sources"], sources, "$each")
        }
    }

    @Test
    fun aPlanThatContradictsItselfIsRefusedByPlace() {
        val good = onePass.passes[0]
        val first = good.segments[0]
        val strip = good.strips[0]
        val huge = Int.MAX_VALUE
        val cases = mapOf(
            onePass.edit { it.copy(strips = listOf(strip.copy(rows = 4))) } to "cover 4 rows",
            onePass.edit { it.copy(strips = listOf(strip.copy(starts = listOf(0)))) } to "starts for",
            onePass.edit { it.copy(strips = listOf(strip.copy(starts = listOf(1, 0)))) } to "first window ends",
            onePass.edit { it.copy(segments = listOf(first, first)) } to "used twice",
            onePass.edit { it.copy(segments = listOf(first.copy(lead = 2), it.segments[1])) } to "lead",
            onePass.edit { it.copy(segments = listOf(first.copy(lead = -1), it.segments[1])) } to "keeps as many",
            onePass.edit { it.copy(segments = listOf(first.copy(states = first.states.drop(1)), it.segments[1])) } to "states",
            onePass.edit { it.copy(segments = listOf(first.copy(output = listOf(4, 3, 16, 2)), it.segments[1])) } to "unlike",
            onePass.edit { it.copy(segments = listOf(first.copy(input = listOf(huge, huge, 8, 2)), it.segments[1])) } to "buffer",
            onePass.edit { it.copy(segments = listOf(first.copy(halo = 99), it.segments[1])) } to null,
            passesOfStrips.edit { it.copy(segments = it.segments.map { one -> one.copy(halo = 99) }) } to "needed of segment 0",
        )
        assertEquals(11, cases.size)
        for ((plan, says) in cases) {
            val faults = plan.faults(listOf(3, 8, 2), listOf(3, 8, 2))
            if (says == null) assertEquals(emptyList(), faults) else assertContains(faults.joinToString(), says)
        }
    }

    private fun StreamPlan.edit(change: (StreamPlan.Pass) -> StreamPlan.Pass) = StreamPlan(passes.dropLast(1) + change(passes.last()))

    private fun decoder(plan: StreamPlan) = StreamDecoder(plan, LATENTS, StreamDtype.FLOAT32, scratch) { Box(it) }

    private fun decoded(decoder: StreamDecoder, clip: FloatArray, count: Int) =
        decoded(decoder, LatentFrames(clip, shape(count)), count)

    private fun decoded(decoder: StreamDecoder, latents: LatentFrames, count: Int): FloatArray {
        val total = decoder.length(count.toLong()).toInt()
        val frames = FloatArray(total * 48)
        var done = 0
        assertTrue(decoder.decode(latents) { made ->
            assertEquals(8, made.height)
            made.copyInto(frames, total, done)
            done += made.count
        })
        assertEquals(total, done)
        return frames
    }

    private fun shape(count: Int) = listOf(1L, 3, count.toLong(), 8, 2)

    private fun clip(count: Int) = FloatArray(count * 48) { sin(it * 1.7).toFloat() }

    /** Kernel 3 looking ahead, doubling in time that drops the first frame, kernel 3 again. */
    private fun segment(program: String, rows: Int, chunk: Int, lead: Int = 0) = StreamPlan.Segment(
        program = program, input = listOf(chunk, 3, rows, 2), output = listOf(2 * chunk, 3, rows, 2), lead = lead,
        convs = listOf(
            StreamPlan.TimeConv(3, StreamPlan.Timeline(1, lead, 0)),
            StreamPlan.TimeConv(3, StreamPlan.Timeline(2, 3 + 2 * lead, 1)),
        ),
        states = List(2) { listOf(2, 3, rows, 2) }, end = StreamPlan.Timeline(2, 4 + 2 * lead, 1), halo = 2,
    )

    private val onePass = StreamPlan(
        listOf(StreamPlan.Pass(listOf(segment("a", 8, 2), segment("b", 8, 3)), listOf(StreamPlan.Strip(listOf(0, 0), 0, 8)))),
    )

    /** The first frames of each segment go to its first state; the second's rows are those of a strip. */
    private val early = StreamPlan(
        listOf(
            StreamPlan.Pass(
                listOf(segment("a", 8, 2, lead = -1), segment("b", 6, 1, lead = -1)),
                listOf(StreamPlan.Strip(listOf(0, 0), 0, 4), StreamPlan.Strip(listOf(0, 2), 4, 4)),
            ),
        ),
    )

    private val passesOfStrips = StreamPlan(
        listOf(
            StreamPlan.Pass(listOf(segment("a", 8, 2)), listOf(StreamPlan.Strip(listOf(0), 0, 8))),
            StreamPlan.Pass(
                listOf(segment("b", 6, 1)), listOf(StreamPlan.Strip(listOf(0), 0, 4), StreamPlan.Strip(listOf(2), 4, 4)),
            ),
        ),
    )

    /** What the two segments make of a whole clip, NCTHW in and out. */
    private fun whole(clip: FloatArray, count: Int): FloatArray {
        var frames = count
        var stream = swapped(clip, 3, frames)
        repeat(2) {
            for (step in 0..1) {
                val padded = stream.copyOf(48) + stream + stream.copyOfRange(stream.size - 48, stream.size)
                stream = blur(box(padded, 48), 8, 2)
                if (step == 0) {
                    stream = doubled(stream, 48).let { it.copyOfRange(48, it.size) }
                    frames = 2 * frames - 1
                }
            }
        }
        return swapped(stream, frames, 3)
    }

    /** (a, b, plane) to (b, a, plane), of planes of 16. */
    private fun swapped(values: FloatArray, a: Int, b: Int) = FloatArray(values.size) {
        val plane = it / 16
        values[(plane % a * b + plane / a) * 16 + it % 16]
    }

    /** Mean of three frames, of all places where there are three. */
    private fun box(frames: FloatArray, plane: Int) =
        FloatArray(frames.size - 2 * plane) { (frames[it] + frames[it + plane] + frames[it + 2 * plane]) / 3 }

    /** Weighted sum of three rows, zeros beyond the edges. */
    private fun blur(frames: FloatArray, height: Int, width: Int) = FloatArray(frames.size) {
        val row = it / width % height
        val above = if (row > 0) frames[it - width] else 0f
        val below = if (row < height - 1) frames[it + width] else 0f
        0.25f * above + 0.5f * frames[it] + 0.25f * below
    }

    /** Every frame as it is and then half of it. */
    private fun doubled(frames: FloatArray, plane: Int) = FloatArray(2 * frames.size) {
        val frame = it / plane
        frames[frame / 2 * plane + it % plane] / if (frame % 2 == 0) 1 else 2
    }

    private fun assertClose(wanted: FloatArray, found: FloatArray, what: String) {
        assertEquals(wanted.size, found.size, what)
        for (index in wanted.indices) assertTrue(abs(wanted[index] - found[index]) < 1e-6, "$what, value $index")
    }

    private companion object {
        val LATENTS = listOf(3, 8, 2)
    }
}
