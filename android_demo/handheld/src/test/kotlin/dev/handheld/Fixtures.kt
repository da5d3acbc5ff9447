package dev.handheld

import java.io.File

/** Tests run in the module's folder, in Gradle as in `make android`. */
internal val FIXTURES = File("../../tests/fixtures")

internal fun tree(bytes: ByteArray): Map<String, Any?> {
    @Suppress("UNCHECKED_CAST")
    return Json.parse(bytes) as Map<String, Any?>
}

/** Numbers compare as numbers: 1 is 1.0. */
internal fun sameJson(one: Any?, other: Any?): Boolean = when {
    one is Map<*, *> && other is Map<*, *> ->
        one.keys.toList() == other.keys.toList() && one.all { (key, value) -> sameJson(value, other[key]) }
    one is List<*> && other is List<*> -> one.size == other.size && one.zip(other).all { (a, b) -> sameJson(a, b) }
    one is Long && other is Double || one is Double && other is Long -> one.toDouble() == other.toDouble()
    else -> one == other
}

private fun Any.toDouble(): Double = (this as Number).toDouble()
