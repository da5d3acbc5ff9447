import Foundation
import HandheldKit

/// A conversation with a pack's model, each answer measured.
///
/// One call runs at a time, off the main thread; only `cancel` may come from another one meanwhile.
public final class Conversation: @unchecked Sendable {
    /// One answer, and what a profile records of it.
    public struct Answer: Sendable {
        public let text: String
        public let promptTokens: Int
        /// The prompt with its first token is the first run, each further token a timed one. Its `after` is unknown: the
        /// device's state is read on the main thread. Load time and memory are of the first answer's round alone.
        public var round: Profile.Round
        /// Ended by `cancel`.
        public let wasCancelled: Bool
    }

    private let pack: FlashPack
    private let model: FlashModel
    private let tokenizer: Tokenizer
    private let options: FlashModel.Options
    /// The last token given, which is not part of the text yet; nil before any.
    private var last: UInt32?
    /// What was there before the model was loaded, for the first answer.
    private var opening: Profile.Round?

    /// Opens the model in `folder` and its tokenizer. `before` is the device's state now.
    ///
    /// Throws `FlashError`, and `BundleError` for a tokenizer that cannot be used.
    public init(folder: URL, budgetBytes: UInt64, options: FlashModel.Options = .init(), before: DeviceState) throws {
        var opening = Profile.Round(before: before, after: DeviceState())
        opening.baselineBytes = footprintBytes().map { Int($0) }
        tokenizer = try Tokenizer(contentsOf: folder.appendingPathComponent("tokenizer.json"))
        pack = try FlashPack(folder: folder)
        model = try FlashModel(pack, budgetBytes: budgetBytes, options: options)
        opening.loadNanoseconds = max(1, Int(model.loadNanoseconds))
        self.opening = opening
        self.options = options
    }

    /// Answers one message with at most `limit` tokens; `onText` gets the answer so far after each. Throws `FlashError`,
    /// as where the conversation no longer fits into the context: `restart` then.
    public func answer(
        _ message: String, limit: Int, before: DeviceState, onText: (String) -> Void
    ) throws -> Answer {
        try model.resume()
        let turn = tokenizer.chat(message, first: last == nil)
        let prompt = (last.map { [$0] } ?? []) + turn
        var round = opening ?? Profile.Round(before: before, after: DeviceState())
        var ids: [UInt32] = []
        var wasCancelled = false
        var counted = try model.statistics()
        func take(_ token: UInt32) {
            ids.append(token)
            last = token
            onText(tokenizer.decode(ids))
        }
        do {
            let start = monotonicNanoseconds()
            try model.generate(prompt, limit: 1) { token in
                round.firstRunNanoseconds = max(1, Int(monotonicNanoseconds() - start))
                take(token)
                return true
            }
            counted = try model.statistics()
            if let last, limit > 1, !(try pack.endTokens).contains(last) {
                var previous = monotonicNanoseconds()
                try model.generate([last], limit: limit - 1) { token in
                    round.latencyNanoseconds.append(max(1, Int(monotonicNanoseconds() - previous)))
                    take(token)
                    previous = monotonicNanoseconds()  // showing a token is no part of making the next
                    return true
                }
            }
        } catch let error as FlashError where error.status == "HH_FLASH_CANCELLED" {
            wasCancelled = true
        }
        if opening != nil { round.peakBytes = peakFootprintBytes().map { Int($0) } }
        opening = nil
        round.flash = try model.statistics().flash(since: counted)
        return Answer(
            text: tokenizer.decode(ids), promptTokens: prompt.count, round: round, wasCancelled: wasCancelled)
    }

    /// Begins another conversation; neurons in memory stay there.
    public func restart() throws {
        try model.resume()
        try model.reset()
        last = nil
    }

    /// From any thread: the answer under way ends with the tokens that it has.
    public func cancel() {
        model.cancel()
    }

    /// What a profile says of the model and one answer.
    public func subject(_ answer: Answer) throws -> Profile.Subject {
        var subject = Profile.Subject(
            flash: pack.folder.lastPathComponent, precision: try pack.precision, sha256: try pack.identity,
            sizeBytes: try pack.sizeBytes, promptTokens: answer.promptTokens, threads: Int(options.computeThreads))
        subject.rounds = [answer.round]
        return subject
    }
}

extension FlashModel.Statistics {
    fileprivate func flash(since earlier: FlashModel.Statistics) -> Profile.Flash {
        Profile.Flash(
            budgetBytes: Int(budgetBytes), bytesRead: Int(bytesRead - earlier.bytesRead),
            neuronsSelected: Int(neuronsSelected - earlier.neuronsSelected),
            cacheHits: Int(cacheHits - earlier.cacheHits))
    }
}
