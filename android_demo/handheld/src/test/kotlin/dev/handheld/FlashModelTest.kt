package dev.handheld

import java.io.File
import java.nio.file.Files
import kotlin.concurrent.thread
import kotlin.test.BeforeTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNull
import kotlin.test.assertTrue
import org.junit.Assume.assumeTrue

/**
 * The engine itself, through JNI, on a pack that `check/pack.py` makes: the folder in the property `handheld.pack`, with
 * what the engine's Python door generated in `expected.json`.
 */
class FlashModelTest {
    private val folder = System.getProperty("handheld.pack")?.let(::File)
    private val expected get() = tree(File(folder, "expected.json").readBytes())
    private val prompt get() = ints("prompt").toIntArray()
    private val meter = object : Meter {
        override fun conditions() = Profile.Conditions(null, null, null, null, null)
    }

    private fun ints(key: String) = (expected[key] as List<*>).map { (it as Long).toInt() }

    private val pack get() = File(folder, "model.flash")

    private fun open(budgetBytes: Long = 32L shl 20) = FlashModel(pack, FlashOptions(budgetBytes))

    @BeforeTest
    fun skipWithoutPack() = assumeTrue("no native library and no pack: run `make android`", folder != null)

    @Test
    fun tokensAreThoseOfThePythonDoor() {
        open().use { model ->
            model.verify()
            assertEquals((expected["vocab"] as Long).toInt(), model.vocabulary)
            assertEquals(expected["identity"], model.identity)
            val tokens = ArrayList<Int>()
            model.generate(prompt, ints("tokens").size) { tokens.add(it) }
            assertEquals(ints("tokens"), tokens)
            assertEquals(prompt.size + tokens.size - 1, model.stats().position)
            model.reset()
            assertEquals(0, model.stats().position)
        }
    }

    @Test
    fun aRecordedTextIsTheSameAndItsProfileIsOneThatReadersTake() {
        val recorder = FlashRecorder(meter) { open() }
        recorder.model.use {
            val tokens = ArrayList<Int>()
            val subject = recorder.generate(prompt, ints("tokens").size) { tokens.add(it) }
            assertEquals(ints("tokens"), tokens)
            assertNull(subject.error)
            assertEquals(tokens.size - 1, subject.rounds.single().latencyNs.size)
            assertTrue(subject.rounds.single().flash!!.neuronsSelected!! > 0)
            assertTrue(subject.rounds.single().loadNs!! > 0)
            val settings = Profile.Settings(tokens.size.toLong(), 0, 1, null, 0, false)
            val device = Profile.Device("android", null, null, null, null, null, null, null, null, null, null, null)
            val profile = Profile(utcNow(), null, mapOf("app" to "1"), settings, device, emptyList(), listOf(subject))
            assertEquals(profile, Profile.parse(profile.toJson().toByteArray(), "own"))
            val next = recorder.generate(intArrayOf(recorder.last), 3) { true }.rounds.single()
            assertNull(next.loadNs, "the second text was not loaded")
            assertEquals(2, next.latencyNs.size)
        }
    }

    @Test
    fun aListenerEndsATextAndItsExceptionComesThrough() {
        open().use { model ->
            var count = 0
            model.generate(prompt, 50) { ++count < 3 }
            assertEquals(3, count)
            assertFailsWith<IllegalStateException> { model.generate(prompt, 50) { error("enough") } }
        }
    }

    @Test
    fun cancellingFromAnotherThreadEndsAText() {
        open().use { model ->
            val error = assertFailsWith<FlashError> {
                model.generate(prompt, 100) {
                    thread { model.cancel() }.join()
                    true
                }
            }
            assertTrue(error.isCancelled)
            model.reset()
            val tokens = ArrayList<Int>()
            model.generate(prompt, 5) { tokens.add(it) }
            assertEquals(ints("tokens").take(5), tokens)
        }
    }

    @Test
    fun aBudgetBelowTheFloorIsRefusedWithTheFloor() {
        val error = assertFailsWith<FlashError> { open(1000) }
        assertEquals("HH_FLASH_BUDGET", error.status)
    }

    @Test
    fun aPackThatIsNotThereTruncatedOrAlteredIsRefused() {
        val missing = assertFailsWith<FlashError> { FlashModel(File(folder, "none-é𝄞"), FlashOptions(1 shl 25)) }
        assertEquals("HH_FLASH_NOT_FOUND", missing.status)
        assertContains(missing.message.orEmpty(), "none-é𝄞")
        val copy = Files.createTempDirectory("pack").toFile()
        try {
            pack.copyRecursively(copy, overwrite = true)
            val neurons = File(copy, "neurons.bin")
            val bytes = neurons.readBytes()
            neurons.writeBytes(bytes.copyOf(bytes.size - 1))
            assertEquals("HH_FLASH_BAD_PACK", assertFailsWith<FlashError> { FlashModel(copy, FlashOptions(1 shl 25)) }.status)
            bytes[bytes.size - 20_000] = (bytes[bytes.size - 20_000] + 1).toByte()
            neurons.writeBytes(bytes)
            FlashModel(copy, FlashOptions(1 shl 25)).use { model ->
                assertEquals("HH_FLASH_BAD_PACK", assertFailsWith<FlashError> { model.verify() }.status)
            }
        } finally {
            copy.deleteRecursively()
        }
    }

    @Test
    fun aClosedModelRefusesCalls() {
        val model = open()
        model.close()
        model.close()
        model.cancel()
        assertFailsWith<IllegalStateException> { model.reset() }
    }
}
