package dev.handheld

import java.io.File
import java.nio.file.Files
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlin.test.fail

/**
 * The bundles of `tests/fixtures/bundles`, which readers in every language take or refuse alike; `make.py` explains.
 */
class SharedBundlesTest {
    private val source = File(FIXTURES, "bundles")
    private val cases = tree(File(source, "expected.json").readBytes()).mapValues { (_, case) -> case as Map<*, *> }
    private val scratch: File = Files.createTempDirectory("bundles").toFile()

    @AfterTest
    fun clean() {
        // Deepest first, and into no link.
        Files.walk(scratch.toPath()).use { paths -> paths.sorted(Comparator.reverseOrder()).forEach(Files::delete) }
    }

    @Test
    fun everyHostileBundleIsRefusedForTheExpectedReason() {
        val hostile = cases.filterValues { it["error"] != null }
        val wrong = hostile.mapNotNull { (name, case) ->
            val error = try {
                openFully(layOut(name, case))
                return@mapNotNull "$name was taken"
            } catch (error: BundleError) {
                error
            } catch (error: Throwable) {
                return@mapNotNull "$name: $error"
            }
            val absent = (case["says"] as List<*>).filter { "$it" !in error.message.orEmpty() }
            val asExpected = error.kind.name.lowercase() == case["error"] && absent.isEmpty()
            if (asExpected) null else "$name: ${error.kind} ${error.message}, wanted ${case["error"]} and $absent"
        }
        assertTrue(hostile.size > 100, "only ${hostile.size} cases")
        if (wrong.isNotEmpty()) fail(wrong.joinToString("\n"))
    }

    @Test
    fun whatIsNotHostileIsTaken() {
        val taken = cases.filterValues { it["error"] == null }
        assertTrue(taken.size > 3, "only ${taken.keys}")
        taken.forEach { (name, case) -> openFully(layOut(name, case)) }
    }

    @Test
    fun goldenTensorsAreAsWritten() {
        assertEquals(listOf(null, "longer"), assertGolden("good").shapes)
        val image = assertGolden("image_taken")
        assertEquals(listOf<String?>(null), image.shapes)
        assertEquals(1, image.manifest.outputs.first().frames(image.manifest.artifacts.first().methods.single().outputs.first()))
        val pixels = assertGolden("pixels_taken").manifest.outputs.first()
        assertTrue(pixels.isPixels)
        assertEquals(3, pixels.frames(listOf(1, 3, 4, 5, 4)))
    }

    private fun assertGolden(name: String): ModelBundle {
        val bundle = openFully(layOut(name, cases.getValue(name)))
        val expected = cases.getValue(name)["golden"] as Map<*, *>
        for (shape in bundle.shapes) {
            val golden = bundle.golden(shape)
            for ((side, tensors) in listOf("input" to golden.inputs, "output" to golden.outputs)) {
                for ((name, values) in tensors) {
                    val starts = expected["$side.$name" + (shape?.let { ".$it" } ?: "")] as List<*>
                    val wanted = starts.map { (it as Double).toFloat() }.toFloatArray()
                    assertContentEquals(wanted, values.copyOf(wanted.size))
                }
            }
        }
        return bundle
    }

    private fun openFully(folder: File): ModelBundle {
        val bundle = ModelBundle.read(folder)
        bundle.manifest.artifacts.forEach(bundle::check)
        bundle.shapes.forEach { bundle.golden(it) }
        return bundle
    }

    private fun layOut(name: String, case: Map<*, *>): File {
        val bundle = File(scratch, "$name/bundle")
        File(source, "good").copyRecursively(bundle)
        File(source, "cases/$name").takeIf { it.exists() }?.copyRecursively(bundle, overwrite = true)
        (case["remove"] as List<*>?)?.forEach { assertTrue(File(bundle, "$it").delete()) }
        (case["links"] as Map<*, *>?)?.forEach { (place, target) -> link(File(bundle, "$place"), "$target") }
        return bundle
    }

    private fun link(place: File, target: String) {
        if (!target.startsWith("outside")) {
            Files.createSymbolicLink(place.toPath(), File(target).toPath())
            return
        }
        val root = generateSequence(place) { it.parentFile }.first { it.name == "bundle" }.parentFile
        val outside = File(root, target)
        outside.parentFile.mkdirs()
        Files.move(place.toPath(), outside.toPath())
        Files.createSymbolicLink(place.toPath(), outside.absoluteFile.toPath())
    }
}
