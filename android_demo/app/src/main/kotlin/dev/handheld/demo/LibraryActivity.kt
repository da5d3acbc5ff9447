package dev.handheld.demo

import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.Intent
import android.net.Uri
import android.os.Bundle
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.ListView
import android.widget.TextView
import java.io.IOException

/** The first screen: what there is to open. */
class LibraryActivity : Activity() {
    private val library by lazy { Library(this) }
    private val work = Work(this)
    private lateinit var message: TextView

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.library)
        message = findViewById(R.id.message) as TextView
        (findViewById(R.id.add) as Button).setOnClickListener { pick() }
    }

    override fun onResume() {
        super.onResume()
        show()
    }

    override fun onDestroy() {
        work.close()
        super.onDestroy()
    }

    private fun show() {
        val items = library.items()
        val list = findViewById(R.id.items) as ListView
        list.adapter = ArrayAdapter(this, android.R.layout.simple_list_item_1, items)
        list.setOnItemClickListener { _, _, position, _ -> open(items[position]) }
        message.text = if (items.isEmpty()) getString(R.string.library_empty, library.folder.path) else ""
    }

    private fun open(item: Library.Item) {
        val screen = if (item.isPack) ChatActivity::class.java else BundleActivity::class.java
        startActivity(Intent(this, screen).putExtra(FOLDER, item.folder.path))
    }

    private fun pick() {
        try {
            startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK)
        } catch (error: ActivityNotFoundException) {
            message.text = getString(R.string.library_empty, library.folder.path)
        }
    }

    @Deprecated("The replacement is part of androidx, which this app does without.")
    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val tree: Uri = data?.data ?: return
        if (request != PICK || result != RESULT_OK) return
        message.text = getString(R.string.copying, tree.lastPathSegment)
        work.run(
            { library.add(tree) },
            { show() },
            { error -> message.text = if (error is IOException) error.message else "$error" },
        )
    }

    companion object {
        /** Extra of the other screens: the path of what they show. */
        const val FOLDER = "folder"
        private const val PICK = 1
    }
}
