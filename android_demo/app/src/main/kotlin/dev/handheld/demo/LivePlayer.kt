package dev.handheld.demo

import android.graphics.Bitmap
import android.os.Handler
import android.os.Looper
import android.widget.ImageView
import dev.handheld.DecodedFrames
import java.util.concurrent.ArrayBlockingQueue
import java.util.concurrent.TimeUnit

/** Shows frames while they are decoded, at most at the rate of video. It holds a fixed number of them, however long. */
class LivePlayer(private val view: ImageView, private val width: Int, private val height: Int) {
    private val handler = Handler(Looper.getMainLooper())
    private val bitmap = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
    private val free = ArrayBlockingQueue<IntArray>(HELD)
    private val ready = ArrayBlockingQueue<IntArray>(HELD)
    private val tick = object : Runnable {
        override fun run() {
            handler.postDelayed(this, 1000L / FRAMES_PER_SECOND)
            val pixels = ready.poll() ?: return
            bitmap.setPixels(pixels, 0, width, 0, 0, width, height)
            free.offer(pixels)
            view.invalidate()
        }
    }

    init {
        repeat(HELD) { free.offer(IntArray(width * height)) }
    }

    /** On the main thread, as [stop]. */
    fun start() {
        view.setImageBitmap(bitmap)
        handler.post(tick)
    }

    fun stop() = handler.removeCallbacks(tick)

    /** On the decoding thread: waits for room; false where `goOn` said no before there was any. */
    fun put(frames: DecodedFrames, frame: Int, goOn: () -> Boolean): Boolean {
        while (goOn()) {
            val pixels = free.poll(100, TimeUnit.MILLISECONDS) ?: continue
            ready.offer(frames.argb(frame, pixels))
            return true
        }
        return false
    }

    private companion object {
        const val FRAMES_PER_SECOND = 24
        const val HELD = 8
    }
}
