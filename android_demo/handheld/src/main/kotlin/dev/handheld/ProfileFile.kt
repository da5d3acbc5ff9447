package dev.handheld

import dev.handheld.Profile.BundleInfo
import dev.handheld.Profile.Conditions
import dev.handheld.Profile.Device
import dev.handheld.Profile.Flash
import dev.handheld.Profile.Limits
import dev.handheld.Profile.Round
import dev.handheld.Profile.Settings
import dev.handheld.Profile.Subject

// Profiles to JSON and back. The keys are in the order of the schema.

private val RUNTIMES =
    arrayOf("onnxruntime", "executorch", "executorch-vulkan", "executorch-coreml", "coreml", "coreai", "flash")
private val THERMAL = arrayOf(
    "nominal", "fair", "serious", "none", "light", "moderate", "severe", "critical", "emergency", "shutdown",
)

internal fun readProfile(bytes: ByteArray, source: String): Profile {
    fun refuse(kind: BundleError.Kind, why: String): Nothing = throw BundleError(kind, "$source $why")
    val tree = try {
        Json.parse(bytes)
    } catch (error: JsonError) {
        refuse(BundleError.Kind.MALFORMED, "is not valid JSON: ${error.message}. Measure again, or share it again.")
    }
    if (tree !is Map<*, *> || "schema_version" !in tree) {
        refuse(BundleError.Kind.MALFORMED, "has no schema_version: it is not a profile.")
    }
    if (tree["schema_version"] != Profile.SCHEMA_VERSION) {
        refuse(
            BundleError.Kind.VERSION,
            "has schema_version ${tree["schema_version"]}; this app understands ${Profile.SCHEMA_VERSION}. Update the app.",
        )
    }
    val faults = ArrayList<String>()
    val profile = Field(tree, "", faults).profile()
    if (faults.isEmpty()) faults += disagreements(profile)
    if (faults.isNotEmpty()) {
        refuse(BundleError.Kind.MALFORMED, "is not a valid profile:\n" + faults.joinToString("\n") { "  $it" })
    }
    return profile
}

private fun disagreements(profile: Profile): List<String> = buildList {
    profile.subjects.groupBy { it.label }.filterValues { it.size > 1 }.keys.forEach {
        add("subjects: label \"$it\" is used twice")
    }
    profile.subjects.forEachIndexed { index, subject ->
        if (subject.bundle != null && subject.bundle >= profile.bundles.size) {
            add("subjects[$index].bundle: ${subject.bundle}, but there are ${profile.bundles.size} bundles")
        }
        subject.parity?.forEachIndexed { place, one ->
            if (listOf(one.maxAbsError, one.meanSquaredError, one.peak).any { (it != null) != one.finite }) {
                add("subjects[$index].parity[$place]: its figures are to be null exactly where finite is false")
            }
        }
    }
}

private fun Field.profile(): Profile = record(
    "schema_version", "created_utc", "command", "software", "settings", "device", "bundles", "subjects",
) { field ->
    Profile(
        createdUtc = field("created_utc").time(),
        command = field("command").textOrNull(),
        software = field("software").map { it.text() },
        settings = field("settings").settings(),
        device = field("device").device(),
        bundles = field("bundles").list { it.bundle() },
        subjects = field("subjects").list(1) { it.subject() },
    )
}

private fun Field.textOrNull(): String? = orNull { it.text() }

private fun Field.countOrNull(): Long? = orNull { it.integer() }

private fun Field.positiveOrNull(): Long? = orNull { it.integer(1) }

private fun Field.shapesOrNull(): List<List<Long>>? =
    orNull { shapes -> shapes.list(1) { shape -> shape.list(1) { it.integer(1) } } }

private fun Field.settings(): Settings =
    record("repeat", "warmup", "rounds", "threads", "cooldown_ns", "interleaved") { field ->
        Settings(
            repeat = field("repeat").integer(1),
            warmup = field("warmup").integer(),
            rounds = field("rounds").integer(1),
            threads = field("threads").positiveOrNull(),
            cooldownNs = field("cooldown_ns").integer(),
            interleaved = field("interleaved").bool(),
        )
    }

private fun Field.device(): Device = record(
    "platform", "model", "soc", "architecture", "os", "os_version", "cores", "cores_available", "ram_bytes",
    "memory_limit_bytes", "memory_metric", "emulated",
) { field ->
    Device(
        platform = field("platform").choice("host", "ios", "android"),
        model = field("model").textOrNull(),
        soc = field("soc").textOrNull(),
        architecture = field("architecture").textOrNull(),
        os = field("os").textOrNull(),
        osVersion = field("os_version").textOrNull(),
        cores = field("cores").positiveOrNull(),
        coresAvailable = field("cores_available").positiveOrNull(),
        ramBytes = field("ram_bytes").positiveOrNull(),
        memoryLimitBytes = field("memory_limit_bytes").positiveOrNull(),
        memoryMetric = field("memory_metric").orNull { it.choice("rss", "pss", "phys_footprint") },
        emulated = field("emulated").orNull { it.bool() },
    )
}

private fun Field.bundle(): BundleInfo = record("name", "created_utc", "provenance", "versions") { field ->
    BundleInfo(
        field("name").text(), field("created_utc").text(), field("provenance").free(),
        field("versions").map { it.text() },
    )
}

private fun Field.subject(): Subject = record(
    "label", "role", "bundle", "artifact", "target", "runtime", "runtime_version", "precision", "sha256", "size_bytes",
    "method", "input_shapes", "output_shapes", "unit", "units_per_run", "prompt_tokens", "threads", "compute_units",
    "tolerance", "rounds", "parity", "error",
) { field ->
    val (asked, observed) = field("compute_units").record("asked", "observed") { units ->
        units("asked").textOrNull() to units("observed").orNull { counts -> counts.map { it.integer() } }
    }
    Subject(
        label = field("label").text(),
        role = field("role").choice("student", "teacher"),
        bundle = field("bundle").countOrNull(),
        artifact = field("artifact").textOrNull(),
        target = field("target").textOrNull(),
        runtime = field("runtime").choice(*RUNTIMES),
        runtimeVersion = field("runtime_version").textOrNull(),
        precision = field("precision").text(),
        sha256 = field("sha256").sha256(),
        sizeBytes = field("size_bytes").integer(1),
        method = field("method").textOrNull(),
        inputShapes = field("input_shapes").shapesOrNull(),
        outputShapes = field("output_shapes").shapesOrNull(),
        unit = field("unit").choice("frame", "token"),
        unitsPerRun = field("units_per_run").integer(1),
        promptTokens = field("prompt_tokens").positiveOrNull(),
        threads = field("threads").positiveOrNull(),
        computeUnitsAsked = asked,
        computeUnitsObserved = observed,
        tolerance = field("tolerance").orNull { limits ->
            limits.record("max_abs", "min_psnr_db") { limit ->
                Limits(limit("max_abs").orNull { it.number(0.0) }, limit("min_psnr_db").orNull { it.number() })
            }
        },
        rounds = field("rounds").list { it.round() },
        parity = field("parity").orNull { parity -> parity.list(1) { it.parity() } },
        error = field("error").textOrNull(),
    )
}

private fun Field.round(): Round = record(
    "load_ns", "first_run_ns", "latency_ns", "first_frame_ns", "baseline_bytes", "peak_bytes", "flash", "before",
    "after",
) { field ->
    Round(
        loadNs = field("load_ns").positiveOrNull(),
        firstRunNs = field("first_run_ns").positiveOrNull(),
        latencyNs = field("latency_ns").list { it.integer(1) },
        firstFrameNs = field("first_frame_ns").list { it.integer(1) },
        baselineBytes = field("baseline_bytes").positiveOrNull(),
        peakBytes = field("peak_bytes").positiveOrNull(),
        flash = field("flash").orNull { it.flash() },
        before = field("before").conditions(),
        after = field("after").conditions(),
    )
}

private fun Field.flash(): Flash = record("budget_bytes", "bytes_read", "neurons_selected", "cache_hits") { field ->
    Flash(
        field("budget_bytes").positiveOrNull(), field("bytes_read").countOrNull(),
        field("neurons_selected").countOrNull(), field("cache_hits").countOrNull(),
    )
}

private fun Field.conditions(): Conditions =
    record("thermal", "low_power_mode", "charging", "battery_percent", "load_average_1min") { field ->
        Conditions(
            thermal = field("thermal").orNull { it.choice(*THERMAL) },
            lowPowerMode = field("low_power_mode").orNull { it.bool() },
            charging = field("charging").orNull { it.bool() },
            batteryPercent = field("battery_percent").orNull { it.integer(0, 100) },
            loadAverage1Min = field("load_average_1min").orNull { it.number(0.0) },
        )
    }

private fun Field.parity(): Parity =
    record("output", "method", "finite", "max_abs_error", "mean_squared_error", "peak") { field ->
        Parity(
            output = field("output").text(),
            method = field("method").textOrNull(),
            finite = field("finite").bool(),
            maxAbsError = field("max_abs_error").orNull { it.number(0.0) },
            meanSquaredError = field("mean_squared_error").orNull { it.number(0.0) },
            peak = field("peak").orNull { it.number(0.0) },
        )
    }

internal fun Profile.tree(): Map<String, Any?> = mapOf(
    "schema_version" to Profile.SCHEMA_VERSION,
    "created_utc" to createdUtc,
    "command" to command,
    "software" to software,
    "settings" to with(settings) {
        mapOf(
            "repeat" to repeat, "warmup" to warmup, "rounds" to rounds, "threads" to threads,
            "cooldown_ns" to cooldownNs, "interleaved" to interleaved,
        )
    },
    "device" to with(device) {
        mapOf(
            "platform" to platform, "model" to model, "soc" to soc, "architecture" to architecture, "os" to os,
            "os_version" to osVersion, "cores" to cores, "cores_available" to coresAvailable, "ram_bytes" to ramBytes,
            "memory_limit_bytes" to memoryLimitBytes, "memory_metric" to memoryMetric, "emulated" to emulated,
        )
    },
    "bundles" to bundles.map {
        mapOf(
            "name" to it.name, "created_utc" to it.createdUtc, "provenance" to it.provenance, "versions" to it.versions,
        )
    },
    "subjects" to subjects.map { it.tree() },
)

private fun Subject.tree(): Map<String, Any?> = mapOf(
    "label" to label, "role" to role, "bundle" to bundle, "artifact" to artifact, "target" to target,
    "runtime" to runtime, "runtime_version" to runtimeVersion, "precision" to precision, "sha256" to sha256,
    "size_bytes" to sizeBytes, "method" to method, "input_shapes" to inputShapes, "output_shapes" to outputShapes,
    "unit" to unit, "units_per_run" to unitsPerRun, "prompt_tokens" to promptTokens, "threads" to threads,
    "compute_units" to mapOf("asked" to computeUnitsAsked, "observed" to computeUnitsObserved),
    "tolerance" to tolerance?.let { mapOf("max_abs" to it.maxAbs, "min_psnr_db" to it.minPsnrDb) },
    "rounds" to rounds.map { it.tree() },
    "parity" to parity?.map {
        mapOf(
            "output" to it.output, "method" to it.method, "finite" to it.finite, "max_abs_error" to it.maxAbsError,
            "mean_squared_error" to it.meanSquaredError, "peak" to it.peak,
        )
    },
    "error" to error,
)

private fun Round.tree(): Map<String, Any?> = mapOf(
    "load_ns" to loadNs, "first_run_ns" to firstRunNs, "latency_ns" to latencyNs, "first_frame_ns" to firstFrameNs,
    "baseline_bytes" to baselineBytes, "peak_bytes" to peakBytes,
    "flash" to flash?.let {
        mapOf(
            "budget_bytes" to it.budgetBytes, "bytes_read" to it.bytesRead, "neurons_selected" to it.neuronsSelected,
            "cache_hits" to it.cacheHits,
        )
    },
    "before" to before.tree(), "after" to after.tree(),
)

private fun Conditions.tree(): Map<String, Any?> = mapOf(
    "thermal" to thermal, "low_power_mode" to lowPowerMode, "charging" to charging, "battery_percent" to batteryPercent,
    "load_average_1min" to loadAverage1Min,
)
