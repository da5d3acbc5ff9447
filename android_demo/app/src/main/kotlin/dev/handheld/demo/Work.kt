package dev.handheld.demo

import android.app.Activity
import java.io.Closeable
import java.util.concurrent.Executors

/** One thread for a screen's slow work, one piece after the other; results come on the main thread while it lives. */
class Work(private val screen: Activity) : Closeable {
    private val thread = Executors.newSingleThreadExecutor()

    /** Every error is shown, `OutOfMemoryError` included: a demo that closes without a word helps no one. */
    fun <T> run(body: () -> T, done: (T) -> Unit, failed: (Throwable) -> Unit) {
        if (thread.isShutdown) return
        thread.execute {
            try {
                val result = body()
                show { done(result) }
            } catch (error: Throwable) {
                show { failed(error) }
            }
        }
    }

    /** Runs `body` on the main thread, if the screen is still there. */
    fun show(body: () -> Unit) = screen.runOnUiThread { if (!screen.isDestroyed) body() }

    /** What runs, runs to its end. `last` comes after it, on its thread. */
    fun close(last: () -> Unit) {
        if (!thread.isShutdown) thread.execute(last)
        thread.shutdown()
    }

    override fun close() = close {}
}
