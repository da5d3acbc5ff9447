package dev.handheld

import java.io.File
import java.io.IOException

/**
 * A bundle in a folder: its manifest, and what it takes to trust its files.
 *
 * Nothing is hashed until it is asked for. [check] an artefact before a runtime gets it.
 */
class ModelBundle private constructor(val folder: File, val manifest: Manifest) {

    /** Golden tensors of one shape by the names of the specs, row-major. */
    class Golden(val inputs: Map<String, FloatArray>, val outputs: Map<String, FloatArray>)

    /** The shapes of every artefact, as [golden] takes them: null is the first, that of the specs. */
    val shapes: List<String?> = listOf<String?>(null) + manifest.artifacts.first().methods.drop(1).map { it.name }

    /** The place of a file or folder of the bundle. Throws [BundleError] ESCAPES where a link leads out of it. */
    fun locate(relative: String): File {
        val file = File(folder, relative)
        if (!isContained(relative) || !file.canonicalPath.startsWith(folder.canonicalPath + "/")) {
            throw BundleError(
                BundleError.Kind.ESCAPES,
                "${folder.name}: $relative leads out of the bundle. A bundle holds its own files; do not use this one " +
                    "unless you know who made it.",
            )
        }
        return file
    }

    /** Compares an artefact's size and SHA-256 with the manifest. Throws [BundleError] with both values. */
    fun check(artifact: Manifest.Artifact) = check(artifact.path, artifact.sizeBytes, artifact.sha256)

    /**
     * The golden tensors of a shape, one of [shapes]; the file is hashed first. Throws [BundleError]: TENSORS for a
     * file that does not hold, in finite values, exactly what the manifest says.
     */
    fun golden(shape: String? = null): Golden {
        require(shape in shapes) { "$shape is not one of $shapes" }
        val golden = manifest.golden
        check(golden.path, golden.sizeBytes, golden.sha256)
        return Safetensors(locate(golden.path), golden.path).use { file ->
            val faults = goldenFaults(file)
            if (faults.isNotEmpty()) refuse(faults)
            fun read(side: String, specs: List<Manifest.TensorSpec>) = specs.associate { spec ->
                val name = goldenName(side, spec.name, shape)
                val values = file.floats(name)
                if (!values.all { it.isFinite() }) refuse(listOf("$name holds NaN or infinity"))
                spec.name to values
            }
            Golden(read("input", manifest.inputs), read("output", manifest.outputs))
        }
    }

    /** Where the tensors of the file are not those of the manifest: names, shapes, dtypes. */
    private fun goldenFaults(file: Safetensors): List<String> {
        val wanted = HashMap<String, Pair<String, List<Long>>>()
        manifest.artifacts.first().methods.forEachIndexed { index, method ->
            val shape = if (index == 0) null else method.name
            for ((side, specs, of) in listOf(
                Triple("input", manifest.inputs, method.inputs), Triple("output", manifest.outputs, method.outputs),
            )) {
                specs.zip(of).forEach { (spec, dims) -> wanted[goldenName(side, spec.name, shape)] = spec.dtype to dims }
            }
        }
        val strays = file.tensors.keys.filter { it !in wanted }.map { "$it is in no spec" }
        return strays + wanted.mapNotNull { (name, spec) ->
            val tensor = file.tensors[name]
            when {
                tensor == null -> "$name is missing"
                tensor.dtype != spec.first || tensor.shape != spec.second ->
                    "$name is ${tensor.dtype} ${tensor.shape}, the manifest says ${spec.first} ${spec.second}"
                else -> null
            }
        }
    }

    private fun refuse(faults: List<String>): Nothing = throw BundleError(
        BundleError.Kind.TENSORS,
        "${folder.name}: ${manifest.golden.path}: ${faults.joinToString("; ")}. Fetch or export the bundle again.",
    )

    private fun check(relative: String, sizeBytes: Long, sha256: String) {
        val files = FileTree(locate(relative), relative)
        if (files.sizeBytes != sizeBytes) {
            val word = if (files.sizeBytes < sizeBytes) "is truncated" else "has grown"
            throw BundleError(
                BundleError.Kind.ALTERED,
                "$relative $word: ${files.sizeBytes} bytes, the manifest says $sizeBytes. Fetch or export the bundle again.",
            )
        }
        val found = files.sha256()
        if (found != sha256) {
            throw BundleError(
                BundleError.Kind.ALTERED,
                "$relative was altered: SHA-256 $found, the manifest says $sha256. Fetch or export the bundle again.",
            )
        }
    }

    companion object {
        private const val LARGEST_MANIFEST_BYTES = 64L shl 20

        /** Reads the manifest of the bundle in `folder`. Throws [BundleError]. */
        fun read(folder: File): ModelBundle {
            val source = File(folder, "manifest.json")
            val bytes = try {
                if (source.length() > LARGEST_MANIFEST_BYTES) throw IOException("it has ${source.length()} bytes")
                source.readBytes()
            } catch (error: IOException) {
                throw BundleError(
                    BundleError.Kind.MISSING,
                    "${folder.name} is not a bundle: its manifest.json cannot be read (${error.message}). Give the folder " +
                        "that `handheld export` wrote.",
                    error,
                )
            }
            val bundle = ModelBundle(folder, Manifest.parse(bytes, "${folder.name}/manifest.json"))
            bundle.locate(bundle.manifest.golden.path)
            bundle.manifest.artifacts.forEach { bundle.locate(it.path) }
            return bundle
        }

        private fun goldenName(side: String, name: String, shape: String?): String =
            if (shape == null) "$side.$name" else "$side.$name.$shape"
    }
}
