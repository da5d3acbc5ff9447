package dev.handheld.demo

import android.content.Context
import android.net.Uri
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import java.io.File
import java.io.IOException

/** What lies in the app's folder: bundles and packs, each a folder. */
class Library(private val context: Context) {
    class Item(val folder: File, val isPack: Boolean) {
        override fun toString(): String = folder.name
    }

    /** Reachable over USB and adb without any permission, and removed with the app. */
    val folder: File = checkNotNull(context.getExternalFilesDir(null) ?: context.filesDir)

    /** Folders that look like bundles or packs. Whether they are sound is found out when one is opened. */
    fun items(): List<Item> = folder.listFiles().orEmpty().sortedBy { it.name }.mapNotNull { child ->
        when {
            child.name.startsWith(".") -> null
            File(child, "neurons.bin").isFile -> Item(child, isPack = true)
            File(child, "manifest.json").isFile -> Item(child, isPack = false)
            else -> null
        }
    }

    /**
     * Copies a folder that a person picked. It takes its place under its name when it is whole; another of that name is
     * not replaced. Throws IOException with a message for people.
     */
    fun add(tree: Uri) {
        val root = DocumentsContract.getTreeDocumentId(tree)
        val name = safe(nameOf(tree, root))
        val target = File(folder, name)
        if (target.exists()) throw IOException("$name is there already. Rename the new one, or remove the old one.")
        val partial = File(folder, ".$name.partial")
        partial.deleteRecursively()
        try {
            copy(tree, root, partial)
            if (!partial.renameTo(target)) throw IOException("$name cannot be moved into place.")
        } finally {
            partial.deleteRecursively()
        }
    }

    private fun copy(tree: Uri, id: String, into: File) {
        if (!into.mkdirs()) throw IOException("$into cannot be made. Is the storage full?")
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, id)
        val columns = arrayOf(Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_MIME_TYPE)
        val cursor = context.contentResolver.query(children, columns, null, null, null)
            ?: throw IOException("${into.name} cannot be listed.")
        cursor.use {
            while (it.moveToNext()) {
                val child = it.getString(0)
                val place = File(into, safe(it.getString(1)))
                if (it.getString(2) == Document.MIME_TYPE_DIR) copy(tree, child, place) else copyFile(tree, child, place)
            }
        }
    }

    private fun copyFile(tree: Uri, id: String, place: File) {
        if (place.exists()) throw IOException("${place.name} is there twice.")
        val stream = context.contentResolver.openInputStream(DocumentsContract.buildDocumentUriUsingTree(tree, id))
            ?: throw IOException("${place.name} cannot be read.")
        stream.use { from -> place.outputStream().use { from.copyTo(it) } }
    }

    private fun nameOf(tree: Uri, id: String): String {
        val uri = DocumentsContract.buildDocumentUriUsingTree(tree, id)
        val cursor = context.contentResolver.query(uri, arrayOf(Document.COLUMN_DISPLAY_NAME), null, null, null)
        return cursor?.use { if (it.moveToFirst()) it.getString(0) else null } ?: throw IOException("The folder has no name.")
    }

    /** Another app's provider names what is copied: a name may not lead out of the folder. */
    private fun safe(name: String): String =
        if (name.isEmpty() || name == "." || name == ".." || '/' in name || '\u0000' in name) {
            throw IOException("\"$name\" is no name for a file.")
        } else {
            name
        }
}
