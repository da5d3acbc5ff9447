import XCTest

@testable import HandheldKit

final class TokenizerTests: XCTestCase {
    private let folder = fixtures.appendingPathComponent("tokenizer")

    /// Ids and texts as the reference implementation gives them for the same files.
    func testAgreesWithTheReference() throws {
        struct Case: Decodable {
            let tokenizer: String
            let text: String
            let ids: [UInt32]
            let decoded: String
        }
        let data = try Data(contentsOf: folder.appendingPathComponent("expected.json"))
        let cases = try JSONDecoder().decode([Case].self, from: data)
        XCTAssertGreaterThan(cases.count, 10)
        for name in Set(cases.map(\.tokenizer)) {
            let tokenizer = try Tokenizer(contentsOf: folder.appendingPathComponent(name))
            for each in cases where each.tokenizer == name {
                XCTAssertEqual(tokenizer.encode(each.text), each.ids, "\(name): \(each.text)")
                XCTAssertEqual(tokenizer.decode(each.ids), each.decoded, "\(name): \(each.text)")
            }
        }
    }

    func testRefusesOtherKindsByName() throws {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID()).json")
        defer { try? FileManager.default.removeItem(at: url) }
        let texts = [
            #"{"model": {"type": "Unigram"}}"#,
            #"{"model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": {"type": "Lowercase"}}"#,
            #"{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "Metaspace"}}"#,
            #"{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}"#,
            "{",
        ]
        for text in texts {
            try Data(text.utf8).write(to: url)
            XCTAssertThrowsError(try Tokenizer(contentsOf: url), text) { error in
                XCTAssertEqual((error as? BundleError)?.kind, .malformed)
            }
        }
        XCTAssertThrowsError(try Tokenizer(contentsOf: folder.appendingPathComponent("none.json")))
    }
}
