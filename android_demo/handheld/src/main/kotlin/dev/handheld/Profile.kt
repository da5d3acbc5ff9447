package dev.handheld

/**
 * One measurement, documented by `runtime/schema/profile.schema.json`: facts as they were read. Statistics are
 * computed by `handheld` alone, so that there is one definition of each. Null is unknown, never 0; times are
 * nanoseconds, sizes bytes.
 */
data class Profile(
    val createdUtc: String,
    val command: String?,
    val software: Map<String, String>,
    val settings: Settings,
    val device: Device,
    val bundles: List<BundleInfo>,
    val subjects: List<Subject>,
) {
    data class Settings(
        val repeat: Long, val warmup: Long, val rounds: Long, val threads: Long?, val cooldownNs: Long,
        val interleaved: Boolean,
    )

    data class Device(
        val platform: String, val model: String?, val soc: String?, val architecture: String?, val os: String?,
        val osVersion: String?, val cores: Long?, val coresAvailable: Long?, val ramBytes: Long?,
        val memoryLimitBytes: Long?, val memoryMetric: String?, val emulated: Boolean?,
    )

    data class BundleInfo(
        val name: String, val createdUtc: String, val provenance: Map<String, Any?>, val versions: Map<String, String>,
    )

    data class Subject(
        val label: String, val role: String, val bundle: Long?, val artifact: String?, val target: String?,
        val runtime: String, val runtimeVersion: String?, val precision: String, val sha256: String,
        val sizeBytes: Long, val method: String?, val inputShapes: List<List<Long>>?,
        val outputShapes: List<List<Long>>?, val unit: String, val unitsPerRun: Long, val promptTokens: Long?,
        val threads: Long?, val computeUnitsAsked: String?, val computeUnitsObserved: Map<String, Long>?,
        val tolerance: Limits?, val rounds: List<Round>, val parity: List<Parity>?, val error: String?,
    )

    data class Limits(val maxAbs: Double?, val minPsnrDb: Double?)

    /** `firstFrameNs`: from the start of each timed run to its first frame; empty where a run gives all at once. */
    data class Round(
        val loadNs: Long?, val firstRunNs: Long?, val latencyNs: List<Long>, val baselineBytes: Long?,
        val peakBytes: Long?, val flash: Flash?, val before: Conditions, val after: Conditions,
        val firstFrameNs: List<Long> = emptyList(),
    )

    data class Flash(
        val budgetBytes: Long?, val bytesRead: Long?, val neuronsSelected: Long?, val cacheHits: Long?,
    )

    /** `thermal` is the system's own word. */
    data class Conditions(
        val thermal: String?, val lowPowerMode: Boolean?, val charging: Boolean?, val batteryPercent: Long?,
        val loadAverage1Min: Double?,
    )

    /** As the file has it: UTF-8 text. */
    fun toJson(): String = Json.write(tree())

    companion object {
        const val SCHEMA_VERSION = 2L

        /**
         * Parses a profile; `source` names it in messages. Throws [BundleError] VERSION or MALFORMED, with every
         * fault.
         */
        fun parse(bytes: ByteArray, source: String): Profile = readProfile(bytes, source)
    }
}
