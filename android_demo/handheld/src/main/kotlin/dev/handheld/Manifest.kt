package dev.handheld

/** What a bundle says about itself: `manifest.json`, documented by `runtime/schema/manifest.schema.json`. */
class Manifest private constructor(
    val name: String,
    val createdUtc: String,
    val provenance: Map<String, Any?>,
    val versions: Map<String, String>,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
    val golden: Golden,
    val artifacts: List<Artifact>,
) {
    /**
     * How a diffusion model normalises latents: n = (z - mean) / std * scaling, z being plain. One value of mean and
     * std per channel, or one for all.
     */
    data class Statistics(val mean: List<Double>, val std: List<Double>, val scaling: Double)

    /**
     * One input or output as a caller sees it; `range` is nominal (lowest, highest), no clamp. Of latents,
     * `normalised` says whether the model takes a diffusion model's, else plain ones, and `statistics` how one
     * becomes the other; null where nothing is known.
     */
    data class TensorSpec(
        val name: String, val shape: List<Long>, val dtype: String, val layout: String,
        val range: Pair<Double, Double>?, val description: String,
        val statistics: Statistics? = null, val normalised: Boolean = false,
    ) {
        /** Whether it is 8-bit RGBA. */
        val isPixels: Boolean get() = dtype == UINT8

        /** Frames in a tensor of this shape, in this layout: batch times time; an image is one. */
        fun frames(shape: List<Long>): Long =
            layout.toList().zip(shape).filter { it.first in "NT" }.fold(1L) { product, axis -> product * axis.second }
    }

    /** How far from the golden outputs an artefact may be; at least one limit is not null. */
    data class Tolerance(val maxAbs: Double?, val minPsnrDb: Double?, val reason: String)

    /** What an artefact computes in one shape; shapes in the order of the bundle's specs. */
    data class Method(val name: String, val inputs: List<List<Long>>, val outputs: List<List<Long>>)

    /** One lowered model: a file or folder, relative to the bundle. */
    data class Artifact(
        val name: String, val target: String, val runtime: String, val path: String, val precision: String,
        val sha256: String, val sizeBytes: Long, val tolerance: Tolerance, val methods: List<Method>,
        val inputDtype: String, val outputDtype: String,
        /** How a streamed artefact, a folder of programs, is run; null for one program of whole clips. */
        val stream: StreamPlan?,
    )

    /** The file of golden inputs and outputs. */
    data class Golden(val path: String, val sha256: String, val sizeBytes: Long)

    companion object {
        const val FORMAT_VERSION = 1L
        const val UINT8 = "uint8"
        const val INT32 = "int32"

        /** What a bundle is, by the layout of what its model gives: floats, or interleaved rows of 8-bit RGBA. */
        val KINDS = mapOf(
            "NCTHW" to "video_decoder", "NCHW" to "image_decoder", "NTHWC" to "video_decoder", "NHWC" to "image_decoder",
        )
        const val FLOAT32 = "float32"
        const val FLOAT16 = "float16"

        /**
         * Parses a manifest; `source` names it in messages. Throws [BundleError]: VERSION for another format, ESCAPES
         * where only paths are at fault, else MALFORMED, with every fault at once.
         */
        fun parse(bytes: ByteArray, source: String): Manifest {
            val tree = try {
                Json.parse(bytes)
            } catch (error: JsonError) {
                throw BundleError(
                    BundleError.Kind.MALFORMED,
                    "$source is not valid JSON: ${error.message}. Fetch or export the bundle again.", error,
                )
            }
            if (tree !is Map<*, *> || "format_version" !in tree) {
                throw BundleError(
                    BundleError.Kind.MALFORMED, "$source has no format_version: it is not the manifest of a bundle.",
                )
            }
            if (tree["format_version"] != FORMAT_VERSION) {
                throw BundleError(
                    BundleError.Kind.VERSION,
                    "$source has format_version ${tree["format_version"]}; this app understands $FORMAT_VERSION. Update " +
                        "the app, or export the bundle with the handheld that the app was made with.",
                )
            }
            val kind = tree["kind"]
            if (kind !in KINDS.values) {
                throw BundleError(
                    BundleError.Kind.VERSION, "$source has kind $kind; this app understands ${KINDS.values.distinct().joinToString()}.",
                )
            }
            val faults = ArrayList<String>()
            val manifest = Field(tree, "", faults).manifest()
            if (faults.isEmpty()) faults += disagreements(manifest, "$kind")
            if (faults.isNotEmpty()) {
                val paths = faults.all { "wanted a path inside the bundle" in it }
                throw BundleError(
                    if (paths) BundleError.Kind.ESCAPES else BundleError.Kind.MALFORMED,
                    "$source is not valid:\n" + faults.joinToString("\n") { "  $it" },
                )
            }
            return manifest
        }

        private fun Field.manifest(): Manifest = record(
            "format_version", "kind", "name", "created_utc", "provenance", "versions", "inputs", "outputs", "golden",
            "artifacts",
        ) { field ->
            Manifest(
                name = field("name").text(),
                createdUtc = field("created_utc").time(),
                provenance = field("provenance").free(),
                versions = field("versions").map { it.text() },
                inputs = field("inputs").list(1) { it.tensor() },
                outputs = field("outputs").list(1) { it.tensor() },
                golden = field("golden").record("path", "sha256", "size_bytes") { golden ->
                    Golden(golden("path").relativePath(), golden("sha256").sha256(), golden("size_bytes").integer())
                },
                artifacts = field("artifacts").list(1) { it.artifact() },
            )
        }

        private fun Field.tensor(): TensorSpec =
            record(
                "name", "shape", "dtype", "layout", "range", "description",
                optional = setOf("statistics", "normalised"),
            ) { field ->
                TensorSpec(
                    name = field("name").word(),
                    shape = field("shape").shape(),
                    dtype = field("dtype").choice(FLOAT32, FLOAT16, UINT8),
                    layout = field("layout").choice(*KINDS.keys.toTypedArray()),
                    // A range of one or three numbers is a fault that `disagreements` finds, as a turned one.
                    range = field("range").orNull { range -> range.list(2) { it.number() } }
                        ?.let { if (it.size == 2) it[0] to it[1] else 0.0 to 0.0 },
                    description = field("description").anyText(),
                    statistics = field("statistics").ifPresent { it.statistics() },
                    normalised = field("normalised").ifPresent { it.bool() } ?: false,
                )
            }

        private fun Field.statistics(): Statistics = record("mean", "std", "scaling") { field ->
            Statistics(
                mean = field("mean").list(1) { it.number() },
                std = field("std").list(1) { it.number() },
                scaling = field("scaling").number(),
            )
        }

        private fun Field.artifact(): Artifact = record(
            "name", "target", "runtime", "path", "precision", "sha256", "size_bytes", "tolerance", "methods",
            "input_dtype", "output_dtype", "settings", "rewrites", "delegation", "lowering_seconds",
            optional = setOf("stream"),
        ) { field ->
            // Checked for what they are, and not kept: they are for people and tools.
            field("settings").free()
            field("rewrites").list { it.rewrite() }
            field("delegation").orNull { it.free() }
            field("lowering_seconds").orNull { it.number(0.0) }
            Artifact(
                name = field("name").text(),
                target = field("target").slug(),
                runtime = field("runtime").choice(*RUNTIMES),
                path = field("path").relativePath(),
                precision = field("precision").slug(),
                sha256 = field("sha256").sha256(),
                sizeBytes = field("size_bytes").integer(),
                tolerance = field("tolerance").record("max_abs", "reason", "min_psnr_db") { limit ->
                    Tolerance(
                        limit("max_abs").orNull { it.number(0.0) },
                        limit("min_psnr_db").orNull { it.number() },
                        limit("reason").text(),
                    )
                },
                methods = field("methods").list(1) { method ->
                    method.record("name", "inputs", "outputs") { of ->
                        Method(
                            of("name").word(), of("inputs").list(1) { it.shape() }, of("outputs").list(1) { it.shape() },
                        )
                    }
                },
                inputDtype = field("input_dtype").dtype(),
                outputDtype = field("output_dtype").choice(FLOAT32, FLOAT16, UINT8, INT32),
                stream = field("stream").ifPresent { it.streamPlan() },
            )
        }

        private fun Field.rewrite(): Unit = record("name", "applied", "refused", "selected") { field ->
            field("name").text()
            field("applied").integer()
            field("refused").list { refusal ->
                refusal.record("node", "module", "reason") { it("node").text() + it("module").anyText() + it("reason").text() }
            }
            field("selected").list { it.free() }
        }

        private fun Field.shape(): List<Long> = list(1) { it.integer(1) }

        private fun Field.dtype(): String = choice(FLOAT32, FLOAT16)

        private val RUNTIMES =
            arrayOf("onnxruntime", "executorch", "executorch-vulkan", "executorch-coreml", "coreml", "coreai")

        /** Faults between fields that are each well formed. */
        private fun disagreements(manifest: Manifest, kind: String): List<String> = buildList {
            manifest.outputs.forEachIndexed { index, spec ->
                if (KINDS[spec.layout] != kind) add("kind: $kind, and outputs[$index] is ${spec.layout}")
            }
            for ((side, specs) in listOf("inputs" to manifest.inputs, "outputs" to manifest.outputs)) {
                addAll(repeated("$side: name", specs.map { it.name }))
                specs.forEachIndexed { index, spec ->
                    if (spec.shape.size != spec.layout.length) {
                        add("$side[$index].shape: ${spec.shape.size} dimensions, ${spec.layout} has ${spec.layout.length}")
                    }
                    spec.statistics?.let { found ->
                        val channels = spec.shape.getOrElse(1) { 0L }
                        val fits = listOf(found.mean, found.std).all { it.size == 1 || it.size.toLong() == channels }
                        if (!fits || !(found.scaling > 0) || !found.std.all { it > 0 }) {
                            add(
                                "$side[$index].statistics: wanted 1 or $channels values of mean and std, std and " +
                                    "scaling above 0"
                            )
                        }
                    }
                    if (side != "outputs" || !spec.isWhollyPixels()) pixelFault(spec)?.let { add("$side[$index].$it") }
                    if (spec.range != null && spec.range.first >= spec.range.second) {
                        add("$side[$index].range: wanted [lowest, highest]")
                    }
                }
            }
            val isPixels = manifest.outputs.any { it.isPixels }
            val allowed = if (isPixels) listOf(UINT8, INT32) else listOf(FLOAT32, FLOAT16)
            manifest.artifacts.forEachIndexed { index, artifact ->
                val at = "artifacts[$index]"
                if (artifact.outputDtype !in allowed) {
                    add("$at.output_dtype: ${artifact.outputDtype}, wanted ${allowed.joinToString(" or ")} for these outputs")
                }
                if (isPixels && artifact.stream != null) add("$at.stream: frames of a streamed artefact are floats, not pixels")
                if (artifact.tolerance.maxAbs == null && artifact.tolerance.minPsnrDb == null) {
                    add("$at.tolerance: max_abs and min_psnr_db are both null: nothing would be checked")
                }
                methodFaults(artifact, manifest).forEach { add("$at.$it") }
                if (artifact.stream != null && isEmpty()) streamFaults(artifact, artifact.stream).forEach { add("$at.stream.$it") }
            }
            addAll(repeated("artifacts: name", manifest.artifacts.map { it.name }))
            val paths = listOf("manifest.json", manifest.golden.path) + manifest.artifacts.map { it.path }
            addAll(repeated("path", paths))
            for (outer in paths) {
                paths.filter { it.startsWith("$outer/") }.forEach { add("path: $it lies inside $outer") }
            }
        }

        private fun TensorSpec.isWhollyPixels() =
            isPixels && layout.endsWith("C") && shape.last() == 4L && range == 0.0 to 255.0

        /** Of a spec that is not wholly 8-bit RGBA, or no output: null where nothing of it is. */
        private fun pixelFault(spec: TensorSpec): String? {
            if (!spec.isPixels && !spec.layout.endsWith("C")) return null
            return "layout: ${spec.dtype} ${spec.layout} ${spec.shape}; 8-bit RGBA is an output of dtype uint8, layout NTHWC " +
                "or NHWC, 4 channels and range [0, 255]"
        }

        private fun methodFaults(artifact: Artifact, manifest: Manifest): List<String> = buildList {
            addAll(repeated("methods: name", artifact.methods.map { it.name }))
            addAll(repeated("methods: inputs", artifact.methods.map { "${it.inputs}" }))
            val first = artifact.methods.first()
            if (first.inputs != manifest.inputs.map { it.shape } || first.outputs != manifest.outputs.map { it.shape }) {
                add("methods[0]: its shapes are not those of the bundle's inputs and outputs")
            }
            if (artifact.methods.any { m -> m.ranks != first.ranks }) {
                add("methods: shapes of other tensors than the bundle's inputs and outputs")
            }
            if (artifact.methods.drop(1) != manifest.artifacts.first().methods.drop(1)) {
                add("methods: after the first, not the same as those of artifacts[0]")
            }
        }

        /** Where a plan contradicts itself or the clips of the artefact. */
        private fun streamFaults(artifact: Artifact, plan: StreamPlan): List<String> {
            val sides = artifact.methods.first().let { it.inputs + it.outputs }
            if (sides.map { it.size } != listOf(5, 5)) {
                return listOf("latents and frames have the shapes $sides: 5 dimensions each are needed")
            }
            val (latents, frames) = sides.map { listOf(it[1], it[3], it[4]) }
            return plan.faults(latents, frames).ifEmpty {
                artifact.methods.mapIndexedNotNull { index, method ->
                    val taken = method.inputs[0][2]
                    val given = method.outputs[0][2]
                    val made = try {
                        plan.length(taken)
                    } catch (error: ArithmeticException) {
                        null
                    }
                    if (made == given) null else "passes: they make $made frames of $taken, methods[$index] says $given"
                }
            }
        }

        private val Method.ranks get() = inputs.map { it.size } to outputs.map { it.size }

        private fun repeated(what: String, values: List<String>): List<String> =
            values.groupBy { it }.filterValues { it.size > 1 }.keys.sorted().map { "$what \"$it\" is used twice" }
    }
}
