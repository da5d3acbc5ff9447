package dev.handheld.demo

import android.app.Activity
import android.os.Bundle
import android.view.WindowManager
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.ImageView
import android.widget.Spinner
import android.widget.TextView
import dev.handheld.AndroidMeter
import dev.handheld.Frames
import dev.handheld.Manifest
import dev.handheld.ModelBundle
import dev.handheld.Profile
import dev.handheld.measure
import dev.handheld.open
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
    private lateinit var live: LiveMeter
    private lateinit var speed: TextView
    private lateinit var message: TextView
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
        measure = findViewById(R.id.measure) as Button
        parity = findViewById(R.id.parity) as Button
        share = findViewById(R.id.share) as Button
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
        work.close()
        super.onDestroy()
    }

    private fun opened(read: ModelBundle) {
        bundle = read
        artefacts = read.manifest.artifacts.filter { it.runsHere }
        val names = artefacts.map { getString(R.string.artefact, it.name, it.runtime, it.precision) }
        (findViewById(R.id.artefacts) as Spinner).adapter =
            ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, names)
        if (artefacts.isEmpty()) message.text = getString(R.string.nothing_runs) else enable(true)
    }

    private fun chosen(): Manifest.Artifact? =
        artefacts.getOrNull((findViewById(R.id.artefacts) as Spinner).selectedItemPosition)

    private fun measure() {
        val bundle = bundle ?: return
        val artefact = chosen() ?: return
        start()
        measure.text = getString(R.string.stop)
        measure.isEnabled = true
        val meter = AndroidMeter(this)
        val shape = artefact.methods.first().outputs.first()
        work.run({
            val subject = bundle.measure(artefact, SETTINGS, meter) { outputs, latencyNs ->
                val frames = Frames(outputs.first(), shape)
                work.show { tell(frames, latencyNs) }
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

    private fun tell(frames: Frames, latencyNs: Long) {
        player.show(frames)
        speed.text = getString(
            R.string.meter_frames,
            String.format(Locale.ROOT, "%.1f", 1e9 * frames.count / latencyNs),
            String.format(Locale.ROOT, "%.1f", latencyNs / 1e6),
        )
    }

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
        message.text = text
        measure.text = getString(R.string.measure)
        enable(true)
    }

    private fun failed(error: Throwable) {
        ended(error.message ?: "$error")
        enable(bundle != null)
    }

    private fun enable(on: Boolean) {
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
