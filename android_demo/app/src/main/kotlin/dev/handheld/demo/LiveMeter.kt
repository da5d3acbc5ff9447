package dev.handheld.demo

import android.app.Activity
import android.os.Handler
import android.os.Looper
import android.widget.TextView
import dev.handheld.AndroidMeter
import dev.handheld.ProcessMemory

/** Shows memory, thermal state and power saving, twice a second, while the screen is in front. */
class LiveMeter(private val screen: Activity, private val view: TextView) {
    private val meter = AndroidMeter(screen)
    private val handler = Handler(Looper.getMainLooper())
    private val tick = object : Runnable {
        override fun run() {
            show()
            handler.postDelayed(this, 500)
        }
    }

    fun start() {
        stop()
        handler.post(tick)
    }

    fun stop() = handler.removeCallbacks(tick)

    private fun show() {
        val state = meter.conditions()
        val unknown = screen.getString(R.string.unknown)
        view.text = screen.getString(
            R.string.meter_device,
            ProcessMemory.residentBytes()?.let { "${it / 1_000_000}" } ?: unknown,
            state.thermal ?: unknown,
            state.lowPowerMode?.let { screen.getString(if (it) R.string.on else R.string.off) } ?: unknown,
        )
    }
}
