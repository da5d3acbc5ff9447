import Foundation
import HandheldFlash
import HandheldKit
import SwiftUI

/// The state of a conversation. The model runs on a queue of its own; everything here changes on the main thread.
@MainActor
final class Chat: ObservableObject {
    struct Line: Identifiable {
        let id: Int
        let isAnswer: Bool
        var text: String
    }

    @Published private(set) var lines: [Line] = []
    @Published private(set) var isRunning = false
    @Published private(set) var message: String?
    @Published private(set) var status = "The model is loaded with the first message."
    @Published var draft = ""
    @Published var budgetMegabytes = 256.0 {
        didSet { if budgetMegabytes != oldValue { engine = nil } }
    }

    let name: String
    private let folder: URL
    private let queue = DispatchQueue(label: "handheld.chat", qos: .userInitiated)
    private var engine: Engine?

    init(folder: URL) {
        self.folder = folder
        name = folder.lastPathComponent
    }

    func send() {
        let text = draft
        guard !isRunning, !text.isEmpty else { return }
        draft = ""
        message = nil
        isRunning = true
        lines.append(Line(id: lines.count, isAnswer: false, text: text))
        lines.append(Line(id: lines.count, isAnswer: true, text: ""))
        let answer = lines.count - 1
        let current = engine, folder = folder, budget = UInt64(budgetMegabytes) * 1_000_000
        queue.async {
            let outcome = Result {
                let engine = try current ?? Engine(folder: folder, budgetBytes: budget)
                DispatchQueue.main.async { self.engine = engine }
                return try engine.answer(text) { soFar in
                    DispatchQueue.main.async { self.lines[answer].text = soFar }
                }
            }
            DispatchQueue.main.async { self.finish(outcome) }
        }
    }

    func stop() {
        engine?.cancel()
    }

    private func finish(_ outcome: Result<String, Error>) {
        isRunning = false
        switch outcome {
        case .success(let text): status = text
        case .failure(let error): message = "\(error)"
        }
    }
}

/// A pack's model and tokenizer. Used from one queue; only `cancel` from another.
private final class Engine: @unchecked Sendable {
    private let tokenizer: Tokenizer
    private let model: FlashModel
    private static let longestAnswer = 256

    init(folder: URL, budgetBytes: UInt64) throws {
        tokenizer = try Tokenizer(contentsOf: folder.appendingPathComponent("tokenizer.json"))
        model = try FlashModel(FlashPack(folder: folder), budgetBytes: budgetBytes)
    }

    /// Answers one message, telling the answer so far after each token. Gives what it took, for people.
    func answer(_ text: String, onText: @escaping (String) -> Void) throws -> String {
        try model.resume()
        try model.reset()
        var ids: [UInt32] = []
        let prompt = tokenizer.encode(prompt(text))
        let (_, nanoseconds) = try timed {
            try model.generate(prompt, limit: Self.longestAnswer) { id in
                ids.append(id)
                onText(tokenizer.decode(ids))
                return true
            }
        }
        let statistics = try model.statistics()
        let perSecond = 1e9 * Double(statistics.tokens) / Double(max(nanoseconds, 1))
        let hits = 100 * Double(statistics.cacheHits) / Double(max(statistics.neuronsSelected, 1))
        return String(
            format: "%.1f tokens/s, %.1f MB read a token, %.0f %% of neurons in memory, %.0f MB held", perSecond,
            Double(statistics.bytesRead) / 1e6 / Double(max(statistics.tokens, 1)), hits,
            Double(statistics.heldPeakBytes) / 1e6)
    }

    func cancel() {
        model.cancel()
    }

    /// ChatML where the tokenizer has its marks, as instruction models do; else the text as it is.
    private func prompt(_ text: String) -> String {
        guard tokenizer.id("<|im_start|>") != nil else { return text }
        return "<|im_start|>user\n\(text)<|im_end|>\n<|im_start|>assistant\n"
    }
}
