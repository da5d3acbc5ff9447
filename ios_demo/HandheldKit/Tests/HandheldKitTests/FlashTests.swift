import HandheldFlash
import XCTest

/// The pack that Python and Kotlin run too; what is expected, `transformers` computed from the same weights.
final class FlashTests: XCTestCase {
    private struct Expected: Decodable {
        let prompt: [UInt32]
        let tokens: [UInt32]
        let logits: [Float]
    }

    private let folder = fixtures.appendingPathComponent("packs")

    private func expected() throws -> Expected {
        try JSONDecoder().decode(Expected.self, from: Data(contentsOf: folder.appendingPathComponent("expected.json")))
    }

    func testGeneratesWhatTransformersGeneratesInTheSmallestMemory() throws {
        let want = try expected()
        let pack = try FlashPack(folder: folder.appendingPathComponent("llama"))
        try pack.verify()
        XCTAssertEqual(try pack.identity.count, 64)
        for mode in [FlashModel.Mode.dense, .exact] {
            let options = FlashModel.Options(mode: mode, contextTokens: 64)
            let model = try FlashModel(pack, budgetBytes: try pack.floor(options), options: options)
            let logits = try model.logits(want.prompt)
            for (got, wanted) in zip(logits, want.logits) { XCTAssertEqual(got, wanted, accuracy: 2e-4) }
            try model.reset()
            var tokens: [UInt32] = []
            try model.generate(want.prompt, limit: want.tokens.count) { token in
                tokens.append(token)
                return true
            }
            XCTAssertEqual(tokens, want.tokens)
            let statistics = try model.statistics()
            XCTAssertGreaterThan(statistics.bytesRead, 0)
            XCTAssertEqual(statistics.tokens, UInt64(want.prompt.count + want.tokens.count - 1))
        }
    }

    func testEndsWhereItIsTold() throws {
        let want = try expected()
        let pack = try FlashPack(folder: folder.appendingPathComponent("llama"))
        let model = try FlashModel(pack, budgetBytes: 64 << 20, options: .init(contextTokens: 64))
        var tokens: [UInt32] = []
        try model.generate(want.prompt, limit: 24) { token in
            tokens.append(token)
            return tokens.count < 3
        }
        XCTAssertEqual(tokens, Array(want.tokens.prefix(3)))
        model.cancel()
        XCTAssertThrowsError(try model.logits([1])) { error in
            XCTAssertEqual((error as? FlashError)?.status, "HH_FLASH_CANCELLED")
        }
        try model.resume()
        XCTAssertNoThrow(try model.logits([1]))
    }

    func testRefusalsNameWhatIsWrong() throws {
        XCTAssertThrowsError(try FlashPack(folder: folder.appendingPathComponent("none"))) { error in
            XCTAssertEqual((error as? FlashError)?.status, "HH_FLASH_NOT_FOUND")
        }
        let pack = try FlashPack(folder: folder.appendingPathComponent("llama"))
        XCTAssertThrowsError(try FlashModel(pack, budgetBytes: 1000)) { error in
            XCTAssertEqual((error as? FlashError)?.status, "HH_FLASH_BUDGET")
            XCTAssertTrue("\(error)".contains("floor") || "\(error)".contains("1000"), "\(error)")
        }
    }

    func testATruncatedPackIsRefused() throws {
        let copy = FileManager.default.temporaryDirectory.appendingPathComponent("pack-\(UUID())")
        defer { try? FileManager.default.removeItem(at: copy) }
        try FileManager.default.copyItem(at: folder.appendingPathComponent("llama"), to: copy)
        let neurons = copy.appendingPathComponent("neurons.bin")
        let bytes = try Data(contentsOf: neurons)
        try bytes.prefix(bytes.count - 1).write(to: neurons)
        XCTAssertThrowsError(try FlashPack(folder: copy)) { error in
            XCTAssertEqual((error as? FlashError)?.status, "HH_FLASH_BAD_PACK")
        }
    }
}
