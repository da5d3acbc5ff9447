package dev.handheld.demo

import android.content.ContentProvider
import android.content.ContentValues
import android.content.Context
import android.content.Intent
import android.database.Cursor
import android.database.MatrixCursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.provider.OpenableColumns
import dev.handheld.Profile
import java.io.File
import java.io.FileNotFoundException

/** What made the profiles of this app. */
internal val SOFTWARE = mapOf("handheld-android" to "0.1.0")

/** Hands a profile to any other app, as a file that `handheld compare` reads. */
class ShareProfile(private val context: Context) {
    fun share(profile: Profile) {
        val label = profile.subjects.first().label.filter { it.isLetterOrDigit() || it in "-_" }.ifEmpty { "profile" }
        val name = "$label-${profile.createdUtc.replace(":", "")}.json"
        val folder = ProfileProvider.folder(context).apply { mkdirs() }
        File(folder, name).writeText(profile.toJson())
        val uri = Uri.Builder().scheme("content").authority(ProfileProvider.AUTHORITY).appendPath(name).build()
        val send = Intent(Intent.ACTION_SEND).setType(ProfileProvider.TYPE).putExtra(Intent.EXTRA_STREAM, uri)
            .addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION)
        context.startActivity(Intent.createChooser(send, context.getString(R.string.share)))
    }
}

/** Gives the files in the app's cache of profiles, and nothing else, to those whom the app has let read them. */
class ProfileProvider : ContentProvider() {
    override fun onCreate(): Boolean = true

    override fun getType(uri: Uri): String = TYPE

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor {
        if (mode != "r") throw FileNotFoundException("profiles are for reading")
        return ParcelFileDescriptor.open(find(uri), ParcelFileDescriptor.MODE_READ_ONLY)
    }

    override fun query(
        uri: Uri, projection: Array<String>?, selection: String?, arguments: Array<String>?, order: String?,
    ): Cursor {
        val file = find(uri)
        val columns = projection ?: arrayOf(OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE)
        return MatrixCursor(columns).apply {
            addRow(columns.map {
                when (it) {
                    OpenableColumns.DISPLAY_NAME -> file.name
                    OpenableColumns.SIZE -> file.length()
                    else -> null
                }
            })
        }
    }

    override fun insert(uri: Uri, values: ContentValues?): Uri? = throw UnsupportedOperationException()

    override fun delete(uri: Uri, selection: String?, arguments: Array<String>?): Int =
        throw UnsupportedOperationException()

    override fun update(uri: Uri, values: ContentValues?, selection: String?, arguments: Array<String>?): Int =
        throw UnsupportedOperationException()

    /** By its name alone, among the files that there are: no path of a caller is followed. */
    private fun find(uri: Uri): File {
        val folder = folder(checkNotNull(context))
        return folder.listFiles().orEmpty().find { it.name == uri.lastPathSegment }
            ?: throw FileNotFoundException("no profile ${uri.lastPathSegment}")
    }

    companion object {
        const val AUTHORITY = "dev.handheld.demo.profiles"
        const val TYPE = "application/json"

        fun folder(context: Context) = File(context.cacheDir, "profiles")
    }
}
