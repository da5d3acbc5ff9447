package dev.handheld.demo

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.view.WindowManager
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.Spinner
import android.widget.TextView
import dev.handheld.AndroidMeter
import dev.handheld.Frames
import dev.handheld.LatentFrames
import dev.handheld.LatentKind
import dev.handheld.Manifest
import dev.handheld.ModelBundle
import dev.handheld.Profile
import dev.handheld.latentKind
import dev.handheld.measure
import dev.handheld.open
import dev.handheld.openStream
import dev.handheld.profile
import dev.handheld.replay
import dev.handheld.runsHere
import java.io.File
import java.util.Locale

/** One bundle: plays what its decoder makes of the golden latents, measures, checks parity, shares the profile. */
class BundleActivity : Activity() {
    private val work = Work(this)
    private val shareFile by lazy { ShareProfile(this) }
    private lateinit var player: FramePlayer
    private var streamed: LivePlayer? = null
    private lateinit var live: LiveMeter
    private lateinit var speed: TextView
    private lateinit var message: TextView
    private lateinit var play: Button
    private lateinit var length: EditText
    private lateinit var measure: Button
    private lateinit var parity: Button
    private lateinit var share: Button
    private var bundle: ModelBundle? = null
    private var artefacts: List<Manifest.Artifact> = emptyList()
    private var profile: Profile? = null

    @Volatile
    private var running = false

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.bundle)
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        player = FramePlayer(findViewById(R.id.frame) as ImageView)
        live = LiveMeter(this, findViewById(R.id.device) as TextView)
        speed = findViewById(R.id.speed) as TextView
        message = findViewById(R.id.message) as TextView
        play = findViewById(R.id.play) as Button
        length = findViewById(R.id.length) as EditText
        measure = findViewById(R.id.measure) as Button
        parity = findViewById(R.id.parity) as Button
        share = findViewById(R.id.share) as Button
        play.setOnClickListener { if (running) running = false else play() }
        measure.setOnClickListener { if (running) running = false else measure() }
        parity.setOnClickListener { checkParity() }
        share.setOnClickListener { profile?.let(shareFile::share) }
        enable(false)
        val folder = File(intent.getStringExtra(LibraryActivity.FOLDER).orEmpty())
        title = folder.name
        work.run({ ModelBundle.read(folder) }, ::opened, ::failed)
    }

    override fun onStart() {
        super.onStart()
        live.start()
    }

    override fun onStop() {
        running = false
        live.stop()
        super.onStop()
    }

    override fun onDestroy() {
        player.stop()
        streamed?.stop()
        work.close()
        super.onDestroy()
    }

    private fun opened(read: ModelBundle) {
        bundle = read
        artefacts = read.manifest.artifacts.filter { it.runsHere }
        val isNormalised = read.manifest.inputs.first().latentKind == LatentKind.NORMALISED
        (findViewById(R.id.latents) as TextView).setText(if (isNormalised) R.string.takes_normalised else R.string.takes_plain)
        val names = artefacts.map { getString(R.string.artefact, it.name, it.runtime, it.precision) }
        val spinner = findViewById(R.id.artefacts) as Spinner
        spinner.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, names)
        spinner.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>?, view: View?, position: Int, id: Long) = showLength()

            override fun onNothingSelected(parent: AdapterView<*>?) = showLength()
        }
        if (artefacts.isEmpty()) message.text = getString(R.string.nothing_runs) else enable(true)
    }

    private fun chosen(): Manifest.Artifact? =
        artefacts.getOrNull((findViewById(R.id.artefacts) as Spinner).selectedItemPosition)

    /** Clips of any length are for streamed artefacts. */
    private fun showLength() {
        (findViewById(R.id.streaming) as View).visibility = if (chosen()?.stream == null) View.GONE else View.VISIBLE
    }

    /** Plays the golden latents, again and again to the length asked for, while they are decoded. */
    private fun play() {
        val bundle = bundle ?: return
        val artefact = chosen() ?: return
        val count = length.text.toString().toLongOrNull()?.takeIf { it > 0 } ?: return
        start()
        play.text = getString(R.string.stop)
        play.isEnabled = true
        val frames = artefact.methods.first().outputs.first()
        val shown = LivePlayer(findViewById(R.id.frame) as ImageView, frames[4].toInt(), frames[3].toInt())
        player.stop()
        streamed?.stop()
        streamed = shown
        shown.start()
        work.run({
            val shape = bundle.shapes.maxByOrNull { name -> artefact.methods.first { name == null || it.name == name }.inputs[0][2] }
            val spec = artefact.methods.first { shape == null || it.name == shape }.inputs.first()
            val latents = LatentFrames(bundle.golden(shape).inputs.values.first(), spec, count)
            bundle.openStream(artefact, scratch = cacheDir).use { stream ->
                val speed = DecodingSpeed()
                stream.decode(latents, { running }) { made ->
                    speed.decoded(made.count)
                    val said = describe(speed)
                    work.show { this.speed.text = said }
                    for (frame in 0 until made.count) if (!shown.put(made, frame) { running }) break
                    speed.goesOn()
                }
            }
        }, { ended("") }, ::failed)
    }

    private fun measure() {
        val bundle = bundle ?: return
        val artefact = chosen() ?: return
        start()
        measure.text = getString(R.string.stop)
        measure.isEnabled = true
        val meter = AndroidMeter(this)
        val shape = artefact.methods.first().outputs.first()
        val count = bundle.manifest.outputs.first().frames(shape)
        work.run({
            val subject = bundle.measure(artefact, SETTINGS, meter) { outputs, latencyNs ->
                val frames = outputs.firstOrNull()?.let { Frames(it, shape) }
                work.show {
                    frames?.let(player::show)
                    tell(count, latencyNs)
                }
                running
            }
            bundle.profile(subject, SETTINGS, meter.device(), SOFTWARE)
        }, { measured ->
            profile = measured
            share.isEnabled = true
            ended(describe(measured.subjects.first(), artefact))
        }, ::failed)
    }

    private fun checkParity() {
        val bundle = bundle ?: return
        val artefact = chosen() ?: return
        start()
        work.run({
            bundle.replay(artefact) { shape -> bundle.open(artefact, shape) }
        }, { found -> ended(found.joinToString("\n") { describe(it, artefact) }) }, ::failed)
    }

    private fun tell(frames: Long, latencyNs: Long) {
        speed.text = getString(
            R.string.meter_frames,
            String.format(Locale.ROOT, "%.1f", 1e9 * frames / latencyNs),
            String.format(Locale.ROOT, "%.1f", latencyNs / 1e6),
        )
    }

    private fun describe(speed: DecodingSpeed): String = getString(
        R.string.meter_stream, String.format(Locale.ROOT, "%.1f", speed.perSecond),
        String.format(Locale.ROOT, "%.0f", speed.firstNs / 1e6), "${speed.frames}",
    )

    private fun describe(subject: Profile.Subject, artefact: Manifest.Artifact): String =
        (listOfNotNull(subject.error) + subject.parity.orEmpty().map { describe(it, artefact) }).joinToString("\n")

    private fun describe(parity: dev.handheld.Parity, artefact: Manifest.Artifact): String {
        val name = parity.output + (parity.method?.let { " ($it)" } ?: "")
        val fault = parity.fault(artefact.tolerance) ?: return getString(
            R.string.parity_passed, name, String.format(Locale.ROOT, "%.2g", parity.maxAbsError),
            String.format(Locale.ROOT, "%.1f", parity.psnrDb),
        )
        return getString(R.string.parity_failed, name, fault)
    }

    private fun start() {
        running = true
        enable(false)
        message.text = ""
    }

    private fun ended(text: String) {
        running = false
        streamed?.stop()
        message.text = text
        play.text = getString(R.string.play)
        measure.text = getString(R.string.measure)
        enable(true)
    }

    private fun failed(error: Throwable) {
        ended(error.message ?: "$error")
        enable(bundle != null)
    }

    private fun enable(on: Boolean) {
        play.isEnabled = on
        measure.isEnabled = on
        parity.isEnabled = on
        share.isEnabled = on && profile != null
    }

    private companion object {
        val SETTINGS = Profile.Settings(
            repeat = 20, warmup = 2, rounds = 1, threads = null, cooldownNs = 0, interleaved = false,
        )
    }
}
