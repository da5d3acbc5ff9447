package dev.handheld

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class JsonTest {
    @Test
    fun valuesComeBackAsTheyWereWritten() {
        val value = mapOf(
            "text" to "quotes \" and \\ and \n and \u0007, é, 𝄞",
            "whole" to Long.MAX_VALUE,
            "fraction" to 0.1,
            "none" to null,
            "nested" to listOf(emptyList<Any?>(), emptyMap<String, Any?>(), listOf(true, false)),
        )
        assertEquals(value, Json.parse(Json.write(value).toByteArray()))
    }

    @Test
    fun escapesAreRead() {
        assertEquals("\"\\/\b\u000C\n\r\t\u00e9𝄞", Json.parse("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00E9\\ud834\\uDD1E\"".toByteArray()))
    }

    @Test
    fun numbersKeepTheirKind() {
        assertEquals(listOf<Any?>(0L, -5L, 1.0, 100.0, 1e19, -0.0), Json.parse("[0,-5,1.0,1e2,10000000000000000000,-0.0]".toByteArray()))
    }

    @Test
    fun sixtyFourLevelsAreReadAndSixtyFiveAreNot() {
        Json.parse(("[".repeat(64) + "]".repeat(64)).toByteArray())
        assertFailsWith<JsonError> { Json.parse(("[".repeat(65) + "]".repeat(65)).toByteArray()) }
    }

    @Test
    fun whatIsNotJsonIsNotWritten() {
        for (value in listOf(Double.NaN, Double.NEGATIVE_INFINITY, mapOf(1 to 2), Any())) {
            assertFailsWith<JsonError> { Json.write(value) }
        }
    }
}
