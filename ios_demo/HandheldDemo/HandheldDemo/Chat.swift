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
    @Published private(set) var profileFile: URL?
    @Published var draft = ""
    @Published var budgetMegabytes = 256.0 {
        didSet { if budgetMegabytes != oldValue { conversation = nil } }
    }

    let name: String
    private let folder: URL
    private let queue = DispatchQueue(label: "handheld.chat", qos: .userInitiated)
    private var conversation: Conversation?

    private nonisolated static let longestAnswer = 256

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
        let current = conversation, folder = folder, budget = UInt64(budgetMegabytes) * 1_000_000, state = DeviceState.now
        queue.async {
            let outcome = Result {
                let conversation = try current ?? Conversation(folder: folder, budgetBytes: budget, before: state)
                DispatchQueue.main.async { self.conversation = conversation }
                return try conversation.answer(text, limit: Self.longestAnswer, before: state) { soFar in
                    DispatchQueue.main.async { self.lines[answer].text = soFar }
                }
            }
            DispatchQueue.main.async { self.finish(outcome) }
        }
    }

    func stop() {
        conversation?.cancel()
    }

    /// Forgets what was said.
    func restart() {
        guard !isRunning else { return }
        lines = []
        message = nil
        do {
            try conversation?.restart()
        } catch {
            message = "\(error)"
        }
    }

    /// Lets go of the model where memory is short and nobody waits for it; the next message loads it again.
    func heedMemory() async {
        for await pressure in MemoryPressure.events where pressure == .critical {
            if isRunning { stop() }
            conversation = nil
            message = "The system is short of memory, so the model was closed. Give it a smaller budget, or close other apps."
        }
    }

    private func finish(_ outcome: Result<Conversation.Answer, Error>) {
        isRunning = false
        do {
            var answer = try outcome.get()
            answer.round.after = DeviceState.now
            status = answer.inWords
            profileFile = try profile(answer)
        } catch {
            message = "\(error)"
        }
    }

    private func profile(_ answer: Conversation.Answer) throws -> URL? {
        guard let conversation else { return nil }
        let profile = Profile(
            createdUTC: Profile.timestamp, software: Profile.software,
            settings: Profile.Settings(runs: Self.longestAnswer, warmup: 0, rounds: 1), device: .this, bundles: [],
            subjects: [try conversation.subject(answer)])
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("\(name).profile.json")
        try profile.write(to: file)
        return file
    }
}

extension Conversation.Answer {
    /// What it took, for people.
    fileprivate var inWords: String {
        let count = Double(max(round.latencyNanoseconds.count, 1))
        let seconds = Double(round.latencyNanoseconds.reduce(0, +)) / 1e9
        let first = round.firstRunNanoseconds.map { String(format: "%.2f s to the first token", Double($0) / 1e9) }
        guard seconds > 0, let flash = round.flash else { return first ?? "" }
        let read = String(
            format: "%.1f tokens/s, %.1f MB read a token, %.0f %% of neurons in memory", count / seconds,
            Double(flash.bytesRead ?? 0) / 1e6 / count,
            100 * Double(flash.cacheHits ?? 0) / Double(max(flash.neuronsSelected ?? 0, 1)))
        return [first, read].compactMap { $0 }.joined(separator: ", ")
    }
}
