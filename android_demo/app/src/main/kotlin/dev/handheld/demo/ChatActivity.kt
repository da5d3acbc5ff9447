package dev.handheld.demo

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.view.WindowManager
import android.widget.Button
import android.widget.EditText
import android.widget.ScrollView
import android.widget.TextView
import dev.handheld.AndroidMeter
import dev.handheld.FlashModel
import dev.handheld.FlashOptions
import dev.handheld.FlashRecorder
import dev.handheld.Profile
import dev.handheld.Tokenizer
import dev.handheld.utcNow
import java.io.File
import java.util.Locale

/** A conversation with a language model whose weights stay in storage. */
class ChatActivity : Activity() {
    private class Conversation(val recorder: FlashRecorder, val tokenizer: Tokenizer) {
        var isFirst = true
    }

    private val work = Work(this)
    private val shareFile by lazy { ShareProfile(this) }
    private lateinit var live: LiveMeter
    private lateinit var speed: TextView
    private lateinit var text: TextView
    private lateinit var message: EditText
    private lateinit var budget: EditText
    private lateinit var open: Button
    private lateinit var send: Button
    private lateinit var share: Button
    private lateinit var folder: File
    private var conversation: Conversation? = null
    private var profile: Profile? = null

    @Volatile
    private var running = false

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.chat)
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        live = LiveMeter(this, findViewById(R.id.device) as TextView)
        speed = findViewById(R.id.speed) as TextView
        text = findViewById(R.id.text) as TextView
        message = findViewById(R.id.message) as EditText
        budget = findViewById(R.id.budget) as EditText
        open = findViewById(R.id.open) as Button
        send = findViewById(R.id.send) as Button
        share = findViewById(R.id.share) as Button
        open.setOnClickListener { open() }
        send.setOnClickListener { if (running) stop() else send() }
        share.setOnClickListener { profile?.let(shareFile::share) }
        folder = File(intent.getStringExtra(LibraryActivity.FOLDER).orEmpty())
        title = folder.name
    }

    override fun onStart() {
        super.onStart()
        live.start()
    }

    override fun onStop() {
        stop()
        live.stop()
        super.onStop()
    }

    override fun onDestroy() {
        val last = conversation
        work.close { last?.recorder?.model?.close() }
        super.onDestroy()
    }

    /** The floor of the budget is the engine's to say: its message names it. */
    private fun open() {
        val megabytes = budget.text.toString().toLongOrNull() ?: return
        open.isEnabled = false
        text.text = ""
        val meter = AndroidMeter(this)
        work.run({
            val tokenizer = Tokenizer.read(folder)
            val recorder = FlashRecorder(meter) {
                FlashModel(folder, FlashOptions(megabytes * 1_000_000, contextTokens = CONTEXT_TOKENS))
            }
            Conversation(recorder, tokenizer)
        }, { opened ->
            conversation = opened
            (findViewById(R.id.opening) as View).visibility = View.GONE
            send.isEnabled = true
        }, { error ->
            text.text = error.message ?: "$error"
            open.isEnabled = true
        })
    }

    private fun send() {
        val talk = conversation ?: return
        val words = message.text.toString().trim().ifEmpty { return }
        message.setText("")
        text.append("\n> $words\n\n")
        running = true
        share.isEnabled = false
        send.text = getString(R.string.stop)
        val meter = AndroidMeter(this)
        work.run({ answer(talk, words, meter) }, { made ->
            profile = made
            share.isEnabled = true
            ended()
            made.subjects.first().error?.let { text.append("\n$it\n") }
        }, { error ->
            ended()
            text.append("\n${error.message ?: "$error"}\n")
        })
    }

    /** On the working thread. */
    private fun answer(talk: Conversation, words: String, meter: AndroidMeter): Profile {
        val recorder = talk.recorder
        val turn = talk.tokenizer.chat(words, talk.isFirst)
        // The last token of the answer before is not part of the text yet.
        val prompt = if (talk.isFirst) turn else intArrayOf(recorder.last) + turn
        val decoder = talk.tokenizer.Decoder()
        var previous = System.nanoTime()
        val subject = recorder.generate(prompt, MOST_TOKENS) { token ->
            val now = System.nanoTime()
            val piece = decoder.add(token)
            val latencyNs = now - previous
            previous = now
            talk.isFirst = false
            work.show { tell(piece, latencyNs) }
            running
        }
        val settings = Profile.Settings(
            repeat = MOST_TOKENS.toLong(), warmup = 0, rounds = 1, threads = null, cooldownNs = 0, interleaved = false,
        )
        return Profile(utcNow(), null, SOFTWARE, settings, meter.device(), emptyList(), listOf(subject))
    }

    private fun tell(piece: String, latencyNs: Long) {
        text.append(piece)
        speed.text = String.format(Locale.ROOT, getString(R.string.meter_token), latencyNs / 1e6)
        (findViewById(R.id.scroll) as ScrollView).fullScroll(View.FOCUS_DOWN)
    }

    /** Ends within the token that is being made. */
    private fun stop() {
        if (!running) return
        running = false
        conversation?.recorder?.model?.cancel()
    }

    private fun ended() {
        running = false
        send.text = getString(R.string.send)
    }

    private companion object {
        const val CONTEXT_TOKENS = 1024
        const val MOST_TOKENS = 256
    }
}
