package dev.handheld.demo

import android.graphics.Bitmap
import android.os.Handler
import android.os.Looper
import android.widget.ImageView
import dev.handheld.Frames

/**
 * Plays a clip over and over, at the rate that video of the teachers has; each new clip goes on at the same place. An image,
 * a clip of one frame, stands still.
 */
class FramePlayer(private val view: ImageView) {
    private val handler = Handler(Looper.getMainLooper())
    private var frames: Frames? = null
    private var bitmap: Bitmap? = null
    private var pixels = IntArray(0)
    private var at = 0
    private val tick = object : Runnable {
        override fun run() {
            draw()
            handler.postDelayed(this, 1000L / FRAMES_PER_SECOND)
        }
    }

    /** On the main thread, as all of this. */
    fun show(clip: Frames) {
        val isTicking = (frames?.count ?: 0) > 1
        if (clip.width != bitmap?.width || clip.height != bitmap?.height) {
            bitmap = Bitmap.createBitmap(clip.width, clip.height, Bitmap.Config.ARGB_8888).also(view::setImageBitmap)
            pixels = IntArray(clip.width * clip.height)
        }
        frames = clip
        if (clip.count > 1) {
            if (!isTicking) handler.post(tick)
        } else {
            handler.removeCallbacks(tick)
            draw()
        }
    }

    fun stop() {
        handler.removeCallbacks(tick)
        frames = null
        bitmap = null // the view may show another one until the next clip
    }

    private fun draw() {
        val clip = frames ?: return
        at = (at + 1) % clip.count
        val bytes = clip.rgba(at)
        // 8-bit RGBA is as the bitmap has it in memory.
        if (bytes != null) bitmap?.copyPixelsFromBuffer(bytes)
        else bitmap?.setPixels(clip.argb(at, pixels), 0, clip.width, 0, 0, clip.width, clip.height)
        view.invalidate()
    }

    private companion object {
        const val FRAMES_PER_SECOND = 24
    }
}
