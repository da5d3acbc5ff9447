package dev.handheld

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

/** The profiles of `tests/fixtures/profiles`, which every language reads, writes and refuses alike. */
class ProfileTest {
    private val source = File(FIXTURES, "profiles")

    @Test
    fun everyProfileIsWrittenAsItWasRead() {
        val files = source.listFiles { file -> file.extension == "json" }.orEmpty()
        assertTrue(files.size >= 4, "only ${files.size} profiles in $source")
        for (file in files) {
            val profile = Profile.parse(file.readBytes(), file.name)
            val again = profile.toJson().toByteArray()
            assertTrue(sameJson(tree(file.readBytes()), tree(again)), "${file.name} became ${String(again)}")
            assertEquals(profile, Profile.parse(again, file.name))
        }
    }

    @Test
    fun aCountThatNoDoubleHoldsIsKept() {
        val profile = Profile.parse(File(source, "llm.json").readBytes(), "llm.json")
        val read = profile.subjects.flatMap { it.rounds }.mapNotNull { it.flash?.bytesRead }
        assertTrue(read.any { it.toDouble().toLong() != it }, "$read")
    }

    @Test
    fun everyBrokenProfileIsRefusedByTheNameOfItsFault() {
        val expected = tree(File(source, "broken/expected.json").readBytes())
        assertTrue(expected.size > 20, "only ${expected.size} cases")
        for ((name, place) in expected) {
            val error = assertFailsWith<BundleError>(name) {
                Profile.parse(File(source, "broken/$name.json").readBytes(), "$name.json")
            }
            assertTrue("$place" in error.message.orEmpty(), "$name: ${error.message}")
        }
    }
}
