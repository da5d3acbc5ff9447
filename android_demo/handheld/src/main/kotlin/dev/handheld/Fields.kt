package dev.handheld

/** Stands for a value that is not there, which is another thing than null. */
private object Absent

/**
 * One value of a JSON tree with its place in it. Readers add what is wrong to `faults` and go on, to find all of it.
 */
internal class Field(private val value: Any?, private val place: String, private val faults: MutableList<String>) {

    /** Reads an object that has exactly `keys`; `read` gets each of them by name. */
    fun <T> record(vararg keys: String, optional: Set<String> = emptySet(), read: ((String) -> Field) -> T): T {
        val members = value as? Map<*, *> ?: emptyMap<Any?, Any?>().also { wanted("an object") }
        members.keys.filter { it !in keys && it !in optional }.forEach { faults.add("${below(it)}: unknown key") }
        if (value is Map<*, *>) keys.filter { it !in members }.forEach { faults.add("${below(it)}: missing") }
        return read { key ->
            check(key in keys || key in optional) { "$key is not among the keys of this record" }
            Field(if (key in members) members[key] else Absent, below(key), faults)
        }
    }

    fun <T> list(least: Int = 0, read: (Field) -> T): List<T> {
        val items = (value as? List<*>)?.takeIf { it.size >= least }
            ?: return emptyList<T>().also { wanted(if (least > 0) "a list of at least $least items" else "a list") }
        return items.mapIndexed { index, item -> read(Field(item, "$place[$index]", faults)) }
    }

    fun <T> map(read: (Field) -> T): Map<String, T> =
        free().mapValues { (key, item) -> read(Field(item, below(key), faults)) }

    /** An object with anything in it. */
    fun free(): Map<String, Any?> {
        @Suppress("UNCHECKED_CAST") // keys of parsed objects are text
        return value as? Map<String, Any?> ?: emptyMap<String, Any?>().also { wanted("an object") }
    }

    /** Null where an optional key is not there. */
    fun <T> ifPresent(read: (Field) -> T): T? = if (value === Absent) null else read(this)

    fun <T> orNull(read: (Field) -> T): T? = if (value == null) null else read(this)

    fun text(): String = text("text that is not empty") { it.isNotEmpty() }

    fun anyText(): String = text("text") { true }

    /** Letters, digits and underscores. */
    fun word(): String = text("letters, digits and underscores") { text ->
        text.isNotEmpty() && text.all { it == '_' || it.isLetterOrDigit() }
    }

    fun slug(): String = text("lowercase letters, digits and single hyphens") { SLUG.matches(it) }

    fun sha256(): String = text("a SHA-256 in 64 lowercase hex digits") { SHA256.matches(it) }

    fun time(): String = text("a UTC time such as 2026-11-23T18:00:00Z") { TIME.matches(it) }

    fun choice(vararg allowed: String): String = text(allowed.joinToString(" or ") { "\"$it\"" }) { it in allowed }

    fun relativePath(): String =
        text("a path inside the bundle, relative, with / between parts and without '..'", ::isContained)

    fun integer(least: Long = 0, most: Long = Long.MAX_VALUE): Long {
        val end = if (most < Long.MAX_VALUE) " and at most $most" else ""
        return (value as? Long)?.takeIf { it in least..most } ?: 0L.also { wanted("a whole number of at least $least$end") }
    }

    fun number(least: Double = Double.NEGATIVE_INFINITY): Double {
        val end = if (least.isFinite()) " of at least $least" else ""
        val number = (value as? Double) ?: (value as? Long)?.toDouble()
        return number?.takeIf { it >= least } ?: 0.0.also { wanted("a finite number$end") }
    }

    fun bool(): Boolean = value as? Boolean ?: false.also { wanted("true or false") }

    private fun text(what: String, good: (String) -> Boolean): String =
        (value as? String)?.takeIf(good) ?: "".also { wanted(what) }

    private fun wanted(what: String) {
        if (value === Absent) return // was reported as missing
        val shown = "$value"
        faults.add("$place: wanted $what, found ${if (shown.length <= 60) shown else shown.take(57) + "..."}")
    }

    private fun below(key: Any?): String = if (place.isEmpty()) "$key" else "$place.$key"

    private companion object {
        val SLUG = Regex("[a-z0-9]+(-[a-z0-9]+)*")
        val SHA256 = Regex("[0-9a-f]{64}")
        val TIME = Regex("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
    }
}

/**
 * Whether a path names something below the folder that it is relative to, in the one spelling that the format allows.
 */
internal fun isContained(path: String): Boolean =
    '\\' !in path && path.split('/').none { it.isEmpty() || it == "." || it == ".." } && path.isPrintable()

private fun String.isPrintable(): Boolean {
    var index = 0
    while (index < length) {
        val code = codePointAt(index)
        when (Character.getType(code).toByte()) {
            Character.CONTROL, Character.FORMAT, Character.SURROGATE, Character.PRIVATE_USE, Character.UNASSIGNED,
            Character.LINE_SEPARATOR, Character.PARAGRAPH_SEPARATOR,
            -> return false
            Character.SPACE_SEPARATOR -> if (code != ' '.code) return false
        }
        index += Character.charCount(code)
    }
    return true
}
