package dev.handheld

import java.io.File
import java.io.IOException

/**
 * Byte-level BPE from a pack's `tokenizer.json`, as GPT-2, Llama 3, Qwen2 and SmolLM2 have it. What it does not know
 * of the format (another model, a normaliser, another pre-tokeniser) is refused by name.
 */
class Tokenizer private constructor(
    private val ids: Map<String, Int>,
    private val ranks: Map<Pair<String, String>, Int>,
    private val special: Map<String, Int>,
    private val splits: List<Split>,
    private val wholeWords: Boolean,
    private val start: List<Int>,
) {
    private val tokens: Map<Int, String> = ids.entries.associate { it.value to it.key }
    private val specialIds: Map<Int, String> = special.entries.associate { it.value to it.key }

    /** Ids of a text; special tokens in it are plain text here, so that nobody can forge a turn of a chat. */
    fun encode(text: String): IntArray {
        var words = listOf(text).filter { it.isNotEmpty() }
        for (split in splits) words = words.flatMap(split::apply)
        return words.flatMap { word -> bytePairs(byteLetters(word)) }.toIntArray()
    }

    /** What a plain text begins with: the ids of a begin-of-text token where the model wants one, and the text's. */
    fun prompt(text: String): IntArray = start.toIntArray() + encode(text)

    /**
     * A user's message, and the opening of the answer, in ChatML where the model has its tokens; else the text as it
     * is. `first` is whether the conversation begins with it.
     */
    fun chat(message: String, first: Boolean): IntArray {
        val begin = special["<|im_start|>"]
        val end = special["<|im_end|>"]
        if (begin == null || end == null) return if (first) prompt(message) else encode(message)
        val turn = intArrayOf(begin) + encode("user\n$message") + intArrayOf(end) + encode("\n")
        val answer = intArrayOf(begin) + encode("assistant\n")
        return if (first) turn + answer else encode("\n") + turn + answer
    }

    /** Collects ids and gives the text that is complete so far: a letter may be of several tokens. */
    inner class Decoder {
        private var pending = ByteArray(0)

        fun add(id: Int): String {
            if (id in specialIds) return ""
            pending += bytesOf(tokens[id] ?: return "")
            val whole = wholePrefix(pending)
            val text = String(pending, 0, whole, Charsets.UTF_8)
            pending = pending.copyOfRange(whole, pending.size)
            return text
        }
    }

    private fun bytePairs(word: String): List<Int> {
        if (wholeWords) ids[word]?.let { return listOf(it) }
        val parts = word.map { it.toString() }.toMutableList()
        while (parts.size > 1) {
            val best = (0 until parts.size - 1).minByOrNull { ranks[parts[it] to parts[it + 1]] ?: Int.MAX_VALUE }!!
            if ((parts[best] to parts[best + 1]) !in ranks) break
            parts[best] = parts[best] + parts.removeAt(best + 1)
        }
        return parts.map { ids[it] ?: throw DecoderError("The tokenizer has no token for ${bytesOf(it).toList()}.") }
    }

    /** One step of the pre-tokeniser: pieces that match, and what lies between them. */
    private class Split(private val pattern: Regex) {
        fun apply(text: String): List<String> = buildList {
            var at = 0
            for (match in pattern.findAll(text)) {
                if (match.range.first > at) add(text.substring(at, match.range.first))
                if (match.value.isNotEmpty()) add(match.value)
                at = match.range.last + 1
            }
            if (at < text.length) add(text.substring(at))
        }
    }

    companion object {
        private val GPT2 = Regex("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+")
        private val EACH_DIGIT = Regex("\\p{N}")
        private val DIGITS = Regex("\\p{N}+")

        /** Reads `tokenizer.json` of a pack. Throws [DecoderError] for one that is missing or of another kind. */
        fun read(pack: File): Tokenizer {
            val file = File(pack, "tokenizer.json")
            val tree = try {
                Json.parse(file.readBytes()) as? Map<*, *> ?: refuse("it is no object")
            } catch (error: IOException) {
                throw DecoderError("${pack.name} has no tokenizer.json: pack the model again, with its tokenizer.", error)
            } catch (error: JsonError) {
                throw DecoderError("${pack.name}/tokenizer.json is not JSON: ${error.message}.", error)
            }
            return try {
                parse(tree)
            } catch (error: ClassCastException) {
                refuse("a field has another type than it should (${error.message})")
            } catch (error: NullPointerException) {
                refuse("a field is missing")
            }
        }

        private fun parse(tree: Map<*, *>): Tokenizer {
            val model = tree["model"] as Map<*, *>
            if (model["type"] != "BPE" || model["byte_fallback"] == true) refuse("its model is ${model["type"]}")
            if (tree["normalizer"] != null) refuse("it has a normalizer")
            val ids = (model["vocab"] as Map<*, *>).entries.associate { it.key as String to (it.value as Long).toInt() }
            val ranks = (model["merges"] as List<*>).withIndex().associate { (rank, merge) -> pair(merge) to rank }
            val special = (tree["added_tokens"] as List<*>? ?: emptyList<Any?>()).map { it as Map<*, *> }
                .associate { it["content"] as String to (it["id"] as Long).toInt() }
            return Tokenizer(
                ids, ranks, special, splits(tree["pre_tokenizer"] as Map<*, *>), model["ignore_merges"] == true,
                start(tree["post_processor"] as Map<*, *>?),
            )
        }

        private fun pair(merge: Any?): Pair<String, String> {
            if (merge is List<*>) return merge[0] as String to merge[1] as String
            val (first, second) = (merge as String).split(' ').also { if (it.size != 2) refuse("merge \"$merge\"") }
            return first to second
        }

        private fun splits(step: Map<*, *>): List<Split> = when (val type = step["type"]) {
            "Sequence" -> (step["pretokenizers"] as List<*>).flatMap { splits(it as Map<*, *>) }
            "ByteLevel" -> {
                if (step["add_prefix_space"] == true) refuse("it adds a space before a text")
                if (step["use_regex"] == false) emptyList() else listOf(Split(GPT2))
            }
            "Digits" -> listOf(Split(if (step["individual_digits"] == true) EACH_DIGIT else DIGITS))
            "Split" -> {
                val pattern = (step["pattern"] as Map<*, *>)["Regex"] as? String
                if (pattern == null || step["behavior"] != "Isolated" || step["invert"] == true) refuse("its way of splitting")
                listOf(Split(Regex(pattern)))
            }
            else -> refuse("its pre-tokeniser is $type")
        }

        /** The special tokens that a template puts before a text. */
        private fun start(step: Map<*, *>?): List<Int> {
            if (step == null) return emptyList()
            if (step["type"] == "Sequence") return (step["processors"] as List<*>).flatMap { start(it as Map<*, *>) }
            if (step["type"] != "TemplateProcessing") return emptyList()
            val known = step["special_tokens"] as Map<*, *>
            return (step["single"] as List<*>).map { it as Map<*, *> }.takeWhile { "SpecialToken" in it }.flatMap { piece ->
                val token = known[(piece["SpecialToken"] as Map<*, *>)["id"]] as Map<*, *>
                (token["ids"] as List<*>).map { (it as Long).toInt() }
            }
        }

        private fun refuse(why: String): Nothing = throw DecoderError("tokenizer.json is of a kind unknown to this app: $why.")

        // Byte-level BPE writes each byte as a letter: printable ones of Latin-1 as they are, others from U+0100 on.

        private val LETTERS: CharArray = CharArray(256).also { letters ->
            var next = 256
            for (byte in 0..255) {
                val printable = byte in 0x21..0x7E || byte in 0xA1..0xAC || byte in 0xAE..0xFF
                letters[byte] = if (printable) byte.toChar() else (next++).toChar()
            }
        }
        private val BYTES: Map<Char, Byte> = LETTERS.withIndex().associate { (byte, letter) -> letter to byte.toByte() }

        private fun byteLetters(text: String): String =
            String(CharArray(text.toByteArray().size).also { letters ->
                text.toByteArray().forEachIndexed { index, byte -> letters[index] = LETTERS[byte.toInt() and 0xFF] }
            })

        private fun bytesOf(token: String): ByteArray = token.mapNotNull { BYTES[it] }.toByteArray()

        /** How many bytes at the front are whole letters; bytes that can never become one count as whole. */
        private fun wholePrefix(bytes: ByteArray): Int {
            for (back in 1..minOf(3, bytes.size)) {
                val byte = bytes[bytes.size - back].toInt() and 0xFF
                if (byte in 0x80..0xBF) continue
                val wanted = if (byte >= 0xF0) 4 else if (byte >= 0xE0) 3 else if (byte >= 0xC0) 2 else 1
                return if (wanted > back) bytes.size - back else bytes.size
            }
            return bytes.size
        }
    }
}
