package dev.handheld

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException

/**
 * JSON as Kotlin values: null, Boolean, Long, Double, String, List and Map (in the order of the text).
 *
 * The platform's own reader takes the last of two equal keys, unquoted names and NaN; two readers that understand one
 * manifest differently are a hole. This one refuses all that RFC 8259 does not have, and what it leaves open: keys
 * given twice, numbers that do not fit a Double, halves of surrogate pairs, and nesting below [DEEPEST] levels.
 */
object Json {
    const val DEEPEST = 64

    /** Parses UTF-8. Throws [JsonError]. */
    fun parse(bytes: ByteArray): Any? {
        val text = try {
            Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString()
        } catch (error: CharacterCodingException) {
            throw JsonError("it is not UTF-8 text", error)
        }
        return JsonParser(text).document()
    }

    /** Writes what [parse] gives back. Throws [JsonError] for values that JSON does not have. */
    fun write(value: Any?): String = StringBuilder().also { write(value, it, "\n") }.append('\n').toString()

    private fun write(value: Any?, out: StringBuilder, line: String) {
        when (value) {
            null, is Boolean, is Long, is Int -> out.append(value)
            is Double -> if (value.isFinite()) out.append(value) else throw JsonError("$value is not JSON")
            is String -> quote(value, out)
            is List<*> -> items('[', value, ']', out, line) { item, inner -> write(item, out, inner) }
            is Map<*, *> -> items('{', value.entries, '}', out, line) { (key, item), inner ->
                quote(key as? String ?: throw JsonError("a key is text, not $key"), out)
                out.append(": ")
                write(item, out, inner)
            }
            else -> throw JsonError("${value.javaClass.name} is not JSON")
        }
    }

    private fun <T> items(
        open: Char, items: Collection<T>, close: Char, out: StringBuilder, line: String, item: (T, String) -> Unit,
    ) {
        out.append(open)
        items.forEachIndexed { index, one ->
            out.append(if (index > 0) ",$line " else "$line ")
            item(one, "$line ")
        }
        if (items.isNotEmpty()) out.append(line)
        out.append(close)
    }

    private fun quote(text: String, out: StringBuilder) {
        out.append('"')
        for (char in text) {
            when {
                char == '"' || char == '\\' -> out.append('\\').append(char)
                char < ' ' -> out.append("\\u00").append(char.code.toString(16).padStart(2, '0'))
                else -> out.append(char)
            }
        }
        out.append('"')
    }
}

/** Why a text is not JSON. */
class JsonError(message: String, cause: Throwable? = null) : Exception(message, cause)

private class JsonParser(private val text: String) {
    private var at = 0
    private var depth = 0

    fun document(): Any? {
        val value = value()
        space()
        if (at < text.length) fail("more after the end of the value")
        return value
    }

    private fun value(): Any? {
        space()
        return when (peek()) {
            '{' -> nested(::members)
            '[' -> nested(::items)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun <T> nested(body: () -> T): T {
        if (++depth > Json.DEEPEST) fail("nested too deeply, below ${Json.DEEPEST} levels")
        at++
        return body().also { depth-- }
    }

    private fun members(): Map<String, Any?> {
        val members = LinkedHashMap<String, Any?>()
        space()
        if (take('}')) return members
        do {
            space()
            if (peek() != '"') fail("a key in quotes is wanted")
            val key = string()
            if (key in members) fail("keys given twice: $key")
            space()
            if (!take(':')) fail("a colon is wanted")
            members[key] = value()
            space()
        } while (take(','))
        if (!take('}')) fail("a comma or } is wanted")
        return members
    }

    private fun items(): List<Any?> {
        val items = ArrayList<Any?>()
        space()
        if (take(']')) return items
        do {
            items.add(value())
            space()
        } while (take(','))
        if (!take(']')) fail("a comma or ] is wanted")
        return items
    }

    private fun string(): String {
        val out = StringBuilder()
        at++
        while (true) {
            val char = peek() ?: fail("the text ends within quotes")
            at++
            when {
                char == '"' -> return whole(out)
                char == '\\' -> out.append(escape())
                char < ' ' -> fail("a control character within quotes")
                else -> out.append(char)
            }
        }
    }

    private fun whole(out: StringBuilder): String {
        var index = 0
        while (index < out.length) {
            val code = out.codePointAt(index)
            if (code in 0xD800..0xDFFF) fail("half of a surrogate pair")
            index += Character.charCount(code)
        }
        return out.toString()
    }

    private fun escape(): Char {
        val char = peek() ?: fail("the text ends within quotes")
        at++
        return when (char) {
            '"', '\\', '/' -> char
            'b' -> '\b'
            'f' -> '\u000C'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> hexadecimal()
            else -> fail("an escape that JSON does not have")
        }
    }

    private fun hexadecimal(): Char {
        var code = 0
        repeat(4) {
            val digit = "0123456789abcdef".indexOf((peek() ?: fail("four hexadecimal digits are wanted")).lowercaseChar())
            if (digit < 0) fail("four hexadecimal digits are wanted")
            code = code shl 4 or digit
            at++
        }
        return code.toChar()
    }

    private fun number(): Any {
        val start = at
        take('-')
        if (!take('0')) digits()
        var whole = true
        if (take('.')) {
            whole = false
            digits()
        }
        if (take('e') || take('E')) {
            whole = false
            if (!take('+')) take('-')
            digits()
        }
        val digits = text.substring(start, at)
        digits.takeIf { whole }?.toLongOrNull()?.let { return it }
        return digits.toDouble().takeIf { it.isFinite() } ?: fail("a number too large")
    }

    private fun digits() {
        val start = at
        while (peek() in '0'..'9') at++
        if (at == start) fail("a value is wanted")
    }

    private fun <T> word(word: String, value: T): T {
        if (!text.startsWith(word, at)) fail("a value is wanted")
        at += word.length
        return value
    }

    private fun space() {
        while (peek().let { it == ' ' || it == '\n' || it == '\r' || it == '\t' }) at++
    }

    private fun peek(): Char? = text.getOrNull(at)

    private fun take(char: Char): Boolean = (peek() == char).also { if (it) at++ }

    private operator fun CharRange.contains(char: Char?): Boolean = char != null && char >= first && char <= last

    private fun fail(why: String): Nothing = throw JsonError("$why, at character $at")
}
