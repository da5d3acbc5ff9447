package dev.handheld

import kotlin.math.abs
import kotlin.math.log10

/**
 * One output against its golden tensor, as a profile records it. The three figures are null exactly where the output
 * is not finite; `method` is null for the first shape; `peak` is what a PSNR is against.
 */
data class Parity(
    val output: String,
    val method: String?,
    val finite: Boolean,
    val maxAbsError: Double?,
    val meanSquaredError: Double?,
    val peak: Double?,
) {
    /** Infinite for equal tensors, null where the output is not finite. */
    val psnrDb: Double?
        get() = when {
            meanSquaredError == null || peak == null -> null
            meanSquaredError == 0.0 -> Double.POSITIVE_INFINITY
            else -> 10 * log10(peak * peak / meanSquaredError)
        }

    /** What of the tolerance is broken, for people; null where nothing is. */
    fun fault(tolerance: Manifest.Tolerance): String? {
        val error = maxAbsError ?: return "The output holds NaN or infinity."
        val psnr = psnrDb ?: return "The output holds NaN or infinity."
        return when {
            tolerance.maxAbs != null && !(error <= tolerance.maxAbs) ->
                "The largest error, $error, is above the tolerance, ${tolerance.maxAbs}."
            tolerance.minPsnrDb != null && !(psnr >= tolerance.minPsnrDb) ->
                "The PSNR, $psnr dB, is below the tolerance, ${tolerance.minPsnrDb} dB."
            else -> null
        }
    }

    companion object {
        /**
         * Compares an output with its golden tensor. The peak is the width of the spec's range, or of the golden values
         * where it has none. Throws [BundleError] TENSORS where they differ in size.
         */
        fun of(spec: Manifest.TensorSpec, method: String?, output: FloatArray, golden: FloatArray): Parity {
            if (output.size != golden.size || golden.isEmpty()) {
                throw BundleError(
                    BundleError.Kind.TENSORS,
                    "${spec.name} came out with ${output.size} values, its golden tensor has ${golden.size}.",
                )
            }
            if (!output.all { it.isFinite() }) return Parity(spec.name, method, false, null, null, null)
            var largest = 0.0
            var squares = 0.0
            for (index in golden.indices) {
                val difference = output[index].toDouble() - golden[index]
                largest = maxOf(largest, abs(difference))
                squares += difference * difference
            }
            val peak = spec.range?.let { it.second - it.first } ?: (golden.max().toDouble() - golden.min())
            return Parity(spec.name, method, true, largest, squares / golden.size, peak)
        }
    }
}
