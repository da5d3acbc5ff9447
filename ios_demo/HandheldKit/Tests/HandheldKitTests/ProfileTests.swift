import XCTest

@testable import HandheldKit

final class ProfileTests: XCTestCase {
    private let folder = fixtures.appendingPathComponent("profiles")

    private func files(_ folder: URL) throws -> [URL] {
        try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
            .filter { $0.pathExtension == "json" && $0.lastPathComponent != "expected.json" }
    }

    /// The fixtures that Python and Kotlin read and write too: every value comes back.
    func testReadsAndWritesAgain() throws {
        let files = try files(folder)
        XCTAssertGreaterThanOrEqual(files.count, 4)
        for file in files {
            let bytes = [UInt8](try Data(contentsOf: file))
            let profile = try Profile(parsing: bytes, source: file.lastPathComponent)
            let written = try JSON.parse(Array(profile.json.text.utf8))
            XCTAssertTrue(same(written, try JSON.parse(bytes)), "\(file.lastPathComponent): \(profile.json.text)")
        }
    }

    func testRefusesWhatIsBrokenAndNamesThePlace() throws {
        let broken = folder.appendingPathComponent("broken")
        let expected = try JSONDecoder().decode(
            [String: String].self, from: Data(contentsOf: broken.appendingPathComponent("expected.json")))
        XCTAssertEqual(Set(expected.keys), Set(try files(broken).map { $0.deletingPathExtension().lastPathComponent }))
        for (name, place) in expected {
            let bytes = [UInt8](try Data(contentsOf: broken.appendingPathComponent("\(name).json")))
            XCTAssertThrowsError(try Profile(parsing: bytes, source: name), name) { error in
                XCTAssertTrue("\(error)".contains(place), "\(name): \(error) does not name \(place)")
            }
        }
    }

    /// Numbers compare as numbers and objects without their order, as JSON has it.
    private func same(_ a: JSON, _ b: JSON) -> Bool {
        switch (a, b) {
        case (.integer(let whole), .number(let number)), (.number(let number), .integer(let whole)):
            return Double(whole) == number
        case (.array(let a), .array(let b)):
            return a.count == b.count && zip(a, b).allSatisfy(same)
        case (.object(let a), .object(let other)):
            return a.count == other.count
                && a.allSatisfy { member in b[member.key].map { same(member.value, $0) } ?? false }
        default: return a == b
        }
    }
}
