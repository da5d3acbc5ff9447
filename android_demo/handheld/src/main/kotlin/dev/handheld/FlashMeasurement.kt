package dev.handheld

import java.io.File

/**
 * Records each text that a model generates as a round of a profile: the prompt with its first token is the first run,
 * each further token a timed run. Counters of the engine are those of the timed runs alone.
 *
 * `load` opens the model; it is closed by the caller.
 */
class FlashRecorder(private val meter: Meter, load: () -> FlashModel) {
    /** What was there before the model was opened, for the text that comes first. */
    private class Opening(val before: Profile.Conditions, val baseline: Long?, val loadNs: Long)

    private val peak: () -> Long?
    private var opening: Opening?
    val model: FlashModel

    init {
        val before = meter.conditions()
        val baseline = ProcessMemory.residentBytes()
        peak = ProcessMemory.watchPeak()
        val (opened, loadNs) = timed(load)
        model = opened
        opening = Opening(before, baseline, loadNs)
    }

    /**
     * Generates and measures; the text goes on from what the model holds. Of all but the first text, what it took to
     * load is unknown. `onToken` may end it.
     */
    fun generate(prompt: IntArray, maxNew: Int, onToken: (Int) -> Boolean): Profile.Subject {
        val opened = opening.also { opening = null }
        val before = opened?.before ?: meter.conditions()
        val latencyNs = ArrayList<Long>()
        var firstRunNs: Long? = null
        var afterFirst = model.stats()
        var error: String? = null
        try {
            val start = System.nanoTime()
            var goOn = true
            model.generate(prompt, 1) { token ->
                goOn = onToken(token)
                last = token
                true
            }
            firstRunNs = System.nanoTime() - start
            afterFirst = model.stats()
            var previous = System.nanoTime()
            if (goOn && maxNew > 1 && last !in model.endTokens) {
                model.generate(intArrayOf(last), maxNew - 1) { token ->
                    val now = System.nanoTime()
                    latencyNs += now - previous
                    val more = onToken(token)
                    previous = System.nanoTime() // showing a token is not part of making the next
                    last = token
                    more
                }
            }
        } catch (failure: FlashError) {
            if (!failure.isCancelled) error = failure.message
        }
        val flash = model.stats().flash
        val round = Profile.Round(
            loadNs = opened?.loadNs, firstRunNs = firstRunNs, latencyNs = latencyNs,
            baselineBytes = opened?.baseline, peakBytes = peak(),
            flash = Profile.Flash(
                flash.budgetBytes, flash.bytesRead.less(afterFirst.flash.bytesRead),
                flash.neuronsSelected.less(afterFirst.flash.neuronsSelected),
                flash.cacheHits.less(afterFirst.flash.cacheHits),
            ),
            before = before, after = meter.conditions(),
        )
        return subject(prompt.size, listOf(round), error)
    }

    /** The last token made, which the text does not hold yet. */
    var last: Int = 0
        private set

    private fun Long?.less(other: Long?): Long? = if (this == null || other == null) null else this - other

    private fun subject(promptTokens: Int, rounds: List<Profile.Round>, error: String?) = Profile.Subject(
        label = model.folder.name, role = "student", bundle = null, artifact = null, target = null, runtime = "flash",
        runtimeVersion = null, precision = model.precision, sha256 = model.identity,
        sizeBytes = maxOf(1, PACK_FILES.sumOf { File(model.folder, it).length() }), method = null, inputShapes = null,
        outputShapes = null, unit = "token", unitsPerRun = 1, promptTokens = promptTokens.toLong(),
        threads = model.options.threads.takeIf { it > 0 }?.toLong(), computeUnitsAsked = "cpu",
        computeUnitsObserved = null, tolerance = null, rounds = rounds, parity = null, error = error,
    )

    private companion object {
        val PACK_FILES = listOf("neurons.bin", "resident.safetensors")
    }
}
