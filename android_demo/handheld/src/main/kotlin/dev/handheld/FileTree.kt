package dev.handheld

import java.io.File
import java.io.IOException
import java.security.MessageDigest

/** A file, or the files below a folder, as the bundle format hashes them: `handheld.runtime.files` says how. */
internal class FileTree(private val root: File, private val name: String) {
    private val files: List<Pair<String, File>> =
        below(root, "").sortedWith { one, other -> compareBytes(one.first.toByteArray(), other.first.toByteArray()) }

    val sizeBytes: Long = files.sumOf { it.second.length() }

    /** SHA-256 in lowercase hex, read a piece at a time. */
    fun sha256(): String {
        val digest = MessageDigest.getInstance("SHA-256")
        val piece = ByteArray(1 shl 20)
        for ((relative, file) in files) {
            if (root.isDirectory) digest.update("$relative\u0000${file.length()}\u0000".toByteArray())
            try {
                file.inputStream().use { stream ->
                    generateSequence { stream.read(piece).takeIf { it >= 0 } }.forEach { digest.update(piece, 0, it) }
                }
            } catch (error: IOException) {
                throw BundleError(
                    BundleError.Kind.MISSING, "$name cannot be read: ${error.message}. Fetch the bundle again.", error,
                )
            }
        }
        return digest.digest().joinToString("") { "%02x".format(it) }
    }

    /** The regular files at or below `file`, by their path relative to the root. */
    private fun below(file: File, relative: String): List<Pair<String, File>> {
        if (isLink(file) || (file.exists() && !file.isFile && !file.isDirectory)) {
            throw BundleError(
                BundleError.Kind.ESCAPES,
                "$name: $file is a symbolic link or a special file; a bundle holds plain files only.",
            )
        }
        if (file.isFile) return listOf(relative to file)
        val children = file.list()
            ?: throw BundleError(BundleError.Kind.MISSING, "$name is missing. Fetch or export the bundle again.")
        return children.flatMap { below(File(file, it), if (relative.isEmpty()) it else "$relative/$it") }
    }

    /** Without java.nio.file, which Android has since API 26 only: a link's canonical path is that of its target. */
    private fun isLink(file: File): Boolean {
        val place = File(file.absoluteFile.parentFile?.canonicalFile ?: return false, file.name)
        return place.canonicalFile != place.absoluteFile
    }

    private fun compareBytes(one: ByteArray, other: ByteArray): Int {
        for (index in 0 until minOf(one.size, other.size)) {
            val order = (one[index].toInt() and 0xFF) - (other[index].toInt() and 0xFF)
            if (order != 0) return order
        }
        return one.size - other.size
    }
}
