import CHandheldFlash
import HandheldKit

/// A language model that keeps its feed-forward layers on storage and runs within a memory budget.
///
/// One call runs at a time: use it from one task, off the main thread. Only `cancel` may come from another one meanwhile.
public final class FlashModel: @unchecked Sendable {
    public enum Mode: Sendable {
        /// Every neuron of every layer.
        case dense
        /// Every neuron over its layer's threshold.
        case exact
        /// The neurons that the pack's selector expects to matter, and those in memory.
        case selected
    }

    public struct Options: Sendable {
        public var mode: Mode
        /// Tokens of prompt and answer together; nil is 512, or all positions that the model has if they are fewer.
        public var contextTokens: UInt32?
        public var computeThreads: UInt32

        public init(mode: Mode = .exact, contextTokens: UInt32? = nil, computeThreads: UInt32 = 2) {
            self.mode = mode
            self.contextTokens = contextTokens
            self.computeThreads = computeThreads
        }

        func native(_ info: hh_flash_model_info, budgetBytes: UInt64) -> hh_flash_model_options {
            var options = hh_flash_model_options()
            hh_flash_model_options_init(&options)
            switch mode {
            case .dense: options.mode = HH_FLASH_DENSE.rawValue
            case .exact: options.mode = HH_FLASH_EXACT.rawValue
            case .selected: options.mode = HH_FLASH_SELECTED.rawValue
            }
            options.context_tokens = contextTokens ?? min(options.context_tokens, info.max_positions)
            options.session.compute_threads = computeThreads
            options.session.budget_bytes = budgetBytes
            return options
        }
    }

    /// Counters since the model was opened or reset.
    public struct Statistics: Sendable {
        public let tokens: UInt64
        public let bytesRead: UInt64
        public let cacheHits: UInt64
        public let neuronsSelected: UInt64
        public let heldPeakBytes: UInt64
        public let budgetBytes: UInt64
    }

    private let handle: OpaquePointer
    private let pack: FlashPack
    /// What opening took, in nanoseconds.
    public let loadNanoseconds: Int64

    /// Throws `FlashError`; HH_FLASH_BUDGET, whose message names the smallest budget, where `budgetBytes` is below it.
    public init(_ pack: FlashPack, budgetBytes: UInt64, options: Options = Options()) throws {
        var native = options.native(try pack.modelInfo(), budgetBytes: budgetBytes)
        var model: OpaquePointer?
        let (status, nanoseconds) = timed { hh_flash_model_open(pack.handle, &native, &model) }
        try FlashError.check(status)
        handle = model!
        loadNanoseconds = nanoseconds
        self.pack = pack
    }

    deinit { hh_flash_model_close(handle) }

    /// Appends the prompt and then the likeliest token, `limit` times at most, until the model ends its text or `onToken`
    /// gives false. The last token given is not part of the text yet: a following prompt begins with it.
    public func generate(_ prompt: [UInt32], limit: Int, onToken: (UInt32) -> Bool) throws {
        try withoutActuallyEscaping(onToken) { escaping in
            var receiver: (UInt32) -> Bool = escaping
            try withUnsafeMutablePointer(to: &receiver) { user in
                let status = hh_flash_model_generate(
                    handle, prompt, prompt.count, limit,
                    { token, user in
                        user!.assumingMemoryBound(to: ((UInt32) -> Bool).self).pointee(token) ? 0 : 1
                    }, user)
                try FlashError.check(status)
            }
        }
    }

    /// Scores of every token of the vocabulary to come after `tokens`, which are appended to the text.
    public func logits(_ tokens: [UInt32]) throws -> [Float] {
        var logits = [Float](repeating: 0, count: Int(try pack.modelInfo().vocab))
        try FlashError.check(hh_flash_model_decode(handle, tokens, tokens.count, &logits))
        return logits
    }

    /// From any thread: the running call, and each one until `resume`, ends with HH_FLASH_CANCELLED.
    public func cancel() {
        hh_flash_model_cancel(handle)
    }

    public func resume() throws {
        try FlashError.check(hh_flash_model_resume(handle))
    }

    /// Begins a new text, with all counters at zero.
    public func reset() throws {
        try FlashError.check(hh_flash_model_reset(handle))
    }

    public func statistics() throws -> Statistics {
        var stats = hh_flash_decode_stats()
        stats.struct_bytes = UInt32(MemoryLayout<hh_flash_decode_stats>.size)
        try FlashError.check(hh_flash_model_stats(handle, &stats))
        return Statistics(
            tokens: stats.tokens, bytesRead: stats.session.bytes_read, cacheHits: stats.session.cache_hits,
            neuronsSelected: stats.session.neurons_selected, heldPeakBytes: stats.session.held_peak_bytes,
            budgetBytes: stats.session.budget_bytes)
    }
}
