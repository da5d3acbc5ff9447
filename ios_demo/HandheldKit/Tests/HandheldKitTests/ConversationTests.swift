import HandheldFlash
import HandheldKit
import XCTest

final class ConversationTests: XCTestCase {
    private var folder: URL!

    override func setUpWithError() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("pack-\(UUID())")
        try FileManager.default.copyItem(at: fixtures.appendingPathComponent("packs/llama"), to: folder)
        // The pack has 320 tokens: a tokenizer without merges makes bytes and special tokens only.
        let shared = fixtures.appendingPathComponent("tokenizers/digits/tokenizer.json")
        var tokenizer = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(contentsOf: shared)) as? [String: Any])
        var model = try XCTUnwrap(tokenizer["model"] as? [String: Any])
        model["merges"] = [String]()
        tokenizer["model"] = model
        try JSONSerialization.data(withJSONObject: tokenizer).write(to: folder.appendingPathComponent("tokenizer.json"))
    }

    override func tearDownWithError() throws {
        try FileManager.default.removeItem(at: folder)
    }

    private func open() throws -> Conversation {
        try Conversation(
            folder: folder, budgetBytes: 64 << 20, options: .init(contextTokens: 128), before: DeviceState())
    }

    /// An answer of a conversation is the one to all of its text, not to the last message alone.
    func testRemembersWhatWasSaid() throws {
        let state = DeviceState()
        let conversation = try open()
        let first = try conversation.answer("12", limit: 6, before: state) { _ in }
        let second = try conversation.answer("12", limit: 6, before: state) { _ in }
        XCTAssertGreaterThan(second.promptTokens, first.promptTokens, "the last token of the answer before comes first")
        try conversation.restart()
        let again = try conversation.answer("12", limit: 6, before: state) { _ in }
        XCTAssertEqual(again.text, first.text)
        XCTAssertEqual(again.promptTokens, first.promptTokens)
    }

    func testAnAnswerIsMeasured() throws {
        let conversation = try open()
        var soFar: [String] = []
        let answer = try conversation.answer("12", limit: 6, before: DeviceState()) { soFar.append($0) }
        XCTAssertEqual(soFar.last, answer.text)
        XCTAssertNotNil(answer.round.loadNanoseconds)
        XCTAssertNotNil(answer.round.firstRunNanoseconds)
        XCTAssertEqual(answer.round.latencyNanoseconds.count, soFar.count - 1)
        XCTAssertGreaterThan(try XCTUnwrap(answer.round.flash?.neuronsSelected), 0)
        let later = try conversation.answer("3", limit: 2, before: DeviceState()) { _ in }
        XCTAssertNil(later.round.loadNanoseconds, "the model was loaded already")

        let profile = Profile(
            createdUTC: Profile.timestamp, software: Profile.software, settings: .init(runs: 6, warmup: 0, rounds: 1),
            device: .init(platform: .ios), bundles: [], subjects: [try conversation.subject(answer)])
        let read = try Profile(parsing: Array(profile.json.text.utf8), source: "profile.json")
        XCTAssertEqual(read, profile)
        XCTAssertEqual(read.subjects[0].runtime, .flash)
        XCTAssertEqual(read.subjects[0].sha256.count, 64)
        XCTAssertGreaterThan(read.subjects[0].sizeBytes, 150_000)
    }

    func testStopsWhenToldAndGoesOn() throws {
        let conversation = try open()
        let cut = try conversation.answer("12", limit: 20, before: DeviceState()) { soFar in
            if soFar.count >= 2 { conversation.cancel() }
        }
        XCTAssertTrue(cut.wasCancelled)
        XCTAssertLessThan(cut.round.latencyNanoseconds.count, 19)
        let next = try conversation.answer("3", limit: 3, before: DeviceState()) { _ in }
        XCTAssertFalse(next.wasCancelled)
    }

    func testAFullContextSaysSo() throws {
        let conversation = try open()
        XCTAssertThrowsError(try conversation.answer(String(repeating: "12", count: 100), limit: 3, before: DeviceState()) { _ in })
        XCTAssertNoThrow(try conversation.answer("12", limit: 3, before: DeviceState()) { _ in })
    }
}
