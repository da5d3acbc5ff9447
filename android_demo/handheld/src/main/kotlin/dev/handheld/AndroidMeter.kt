package dev.handheld

import android.app.ActivityManager
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import java.io.File
import java.io.IOException

/** Reads the state of an Android device. What its version of Android does not tell is null. */
class AndroidMeter(context: Context) : Meter {
    private val context = context.applicationContext
    private val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager

    override fun conditions(): Profile.Conditions {
        val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        val level = battery?.getIntExtra(BatteryManager.EXTRA_LEVEL, -1) ?: -1
        val scale = battery?.getIntExtra(BatteryManager.EXTRA_SCALE, -1) ?: -1
        val plugged = battery?.getIntExtra(BatteryManager.EXTRA_PLUGGED, -1) ?: -1
        return Profile.Conditions(
            thermal = thermal(),
            lowPowerMode = power.isPowerSaveMode,
            charging = if (plugged >= 0) plugged > 0 else null,
            batteryPercent = if (level >= 0 && scale > 0) 100L * level / scale else null,
            loadAverage1Min = loadAverage(),
        )
    }

    /** What ran a measurement. */
    fun device(): Profile.Device {
        val memory = ActivityManager.MemoryInfo()
        (context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(memory)
        val cpus = File("/sys/devices/system/cpu").list { _, name -> CPU.matches(name) }
        return Profile.Device(
            platform = "android",
            model = Build.MODEL.takeIf { it.isNotEmpty() },
            soc = soc(),
            architecture = Build.SUPPORTED_ABIS.firstOrNull(),
            os = "Android",
            osVersion = Build.VERSION.RELEASE.takeIf { it.isNotEmpty() },
            cores = cpus?.size?.takeIf { it > 0 }?.toLong(),
            coresAvailable = Runtime.getRuntime().availableProcessors().toLong(),
            ramBytes = memory.totalMem.takeIf { it > 0 },
            memoryLimitBytes = null, // of native memory there is none but the device's
            memoryMetric = "rss",
            emulated = Build.HARDWARE in EMULATORS,
        )
    }

    // The methods and fields below are younger than the API that this library is compiled against (23).

    /** PowerManager.getCurrentThermalStatus, since API 29. */
    private fun thermal(): String? = try {
        THERMAL.getOrNull(PowerManager::class.java.getMethod("getCurrentThermalStatus").invoke(power) as Int)
    } catch (error: ReflectiveOperationException) {
        null
    }

    /** Build.SOC_MODEL, since API 31. */
    private fun soc(): String? = try {
        (Build::class.java.getField("SOC_MODEL").get(null) as String).takeIf { it.isNotEmpty() && it != Build.UNKNOWN }
    } catch (error: ReflectiveOperationException) {
        null
    }

    /** Not readable by apps on most devices. */
    private fun loadAverage(): Double? = try {
        File("/proc/loadavg").readText().substringBefore(' ').toDoubleOrNull()
    } catch (error: IOException) {
        null
    }

    private companion object {
        val CPU = Regex("cpu[0-9]+")
        val EMULATORS = setOf("goldfish", "ranchu")

        /** PowerManager.THERMAL_STATUS_*, in the order of their values. */
        val THERMAL = listOf("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
    }
}
