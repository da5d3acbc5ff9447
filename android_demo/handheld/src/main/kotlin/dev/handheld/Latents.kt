package dev.handheld

/** As a VAE's encoder emits latents (plain), or as a diffusion model takes and gives them (normalised). */
enum class LatentKind { PLAIN, NORMALISED }

/** The kind that the model takes. */
val Manifest.TensorSpec.latentKind: LatentKind get() = if (normalised) LatentKind.NORMALISED else LatentKind.PLAIN

/** Plain latents (N, C, ...), row-major, as a diffusion model takes and gives them; fp32, as `handheld` computes it. */
fun Manifest.Statistics.normalise(latents: FloatArray, shape: List<Long>): FloatArray {
    val factor = scaling.toFloat()
    return perChannel(latents, shape) { value, mean, std -> (value - mean) / std * factor }
}

/** A diffusion model's latents (N, C, ...), row-major, as a VAE's encoder emits them; fp32, as `handheld` computes it. */
fun Manifest.Statistics.denormalise(latents: FloatArray, shape: List<Long>): FloatArray {
    val factor = scaling.toFloat()
    return perChannel(latents, shape) { value, mean, std -> value / factor * std + mean }
}

/**
 * Latents (N, C, ...), row-major, as the model takes them.
 *
 * @param given the kind that they are of.
 * @throws BundleError TENSORS where they must be converted and the bundle does not say how, and for a shape that they do
 *   not fill.
 */
fun Manifest.TensorSpec.taken(latents: FloatArray, shape: List<Long>, given: LatentKind): FloatArray {
    requireConvertible(given)
    val how = statistics
    return if (given == latentKind || how == null) latents
    else if (given == LatentKind.NORMALISED) how.denormalise(latents, shape)
    else how.normalise(latents, shape)
}

/** Refuses latents of a kind that the model does not take, where the bundle does not say how to convert them. */
internal fun Manifest.TensorSpec.requireConvertible(given: LatentKind) {
    if (given == latentKind || statistics != null) return
    throw BundleError(
        BundleError.Kind.TENSORS,
        "The latents are ${given.name.lowercase()}, this model takes ${latentKind.name.lowercase()} ones, and the bundle " +
            "has no statistics by which one becomes the other. Give latents as it takes them.",
    )
}

private inline fun Manifest.Statistics.perChannel(
    latents: FloatArray, shape: List<Long>, compute: (value: Float, mean: Float, std: Float) -> Float,
): FloatArray {
    val channels = shape.getOrElse(1) { 0L }
    val fits = listOf(mean, std).all { it.size == 1 || it.size.toLong() == channels }
    if (!fits || shape.fold(1L, Long::times) != latents.size.toLong()) {
        throw BundleError(
            BundleError.Kind.TENSORS,
            "Latents are ${latents.size} values of shape $shape; the statistics are for ${maxOf(mean.size, std.size)} " +
                "channels. Give latents (N, C, ...) of this bundle.",
        )
    }
    val plane = shape.drop(2).fold(1L, Long::times).toInt()
    val converted = FloatArray(latents.size)
    for (row in 0 until (shape[0] * channels).toInt()) {
        val channel = row % channels.toInt()
        val center = mean[if (mean.size == 1) 0 else channel].toFloat()
        val width = std[if (std.size == 1) 0 else channel].toFloat()
        for (place in row * plane until (row + 1) * plane) converted[place] = compute(latents[place], center, width)
    }
    return converted
}
