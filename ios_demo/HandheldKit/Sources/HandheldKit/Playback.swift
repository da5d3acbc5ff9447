/// Frames, and what decoding them took since those before.
public struct TimedFrames: Sendable {
    public let frames: StreamFrames
    public let nanoseconds: Int64
}

/// Decodes one piece ahead of the one that is shown, and no more than that: memory does not grow with the clip, however
/// slowly it is shown.
public actor Playback {
    private let pull: @Sendable () async throws -> TimedFrames?
    private let isAhead: Bool
    private var ahead: Task<TimedFrames?, Error>?

    /// - Parameter isAhead: false decodes nothing before it is asked for, where memory is short.
    public init(_ decoder: any ClipDecoder, _ latents: StreamFrames, isAhead: Bool = true) async throws {
        let source = Source(try await decoder.frames(of: latents).makeAsyncIterator())
        pull = { try await source.next() }
        self.isAhead = isAhead
    }

    /// The next frames; nil at the end of the clip. Throws what decoding throws, and `CancellationError` where the task that
    /// asks is cancelled.
    public func next() async throws -> TimedFrames? {
        let pull = pull
        let task = ahead ?? Task { try await pull() }
        ahead = nil
        let frames = try await withTaskCancellationHandler {
            try await task.value
        } onCancel: {
            task.cancel()
        }
        try Task.checkCancellation()
        if isAhead && frames != nil { ahead = Task { try await pull() } }
        return frames
    }

    deinit { ahead?.cancel() }

    /// Asked by one task at a time, each waiting for the one before.
    private final class Source: @unchecked Sendable {
        private var iterator: AsyncThrowingStream<StreamFrames, Error>.AsyncIterator

        init(_ iterator: AsyncThrowingStream<StreamFrames, Error>.AsyncIterator) {
            self.iterator = iterator
        }

        func next() async throws -> TimedFrames? {
            let start = monotonicNanoseconds()
            guard let frames = try await iterator.next() else { return nil }
            return TimedFrames(frames: frames, nanoseconds: monotonicNanoseconds() - start)
        }
    }
}

/// What a person sees while a clip is decoded.
public struct DecodingMeter: Equatable, Sendable {
    /// Frames so far.
    public private(set) var frames = 0
    /// From the beginning to the first frames.
    public private(set) var firstFrameNanoseconds: Int64?
    /// What the last whole clip took.
    public private(set) var clipNanoseconds: Int64?
    private var recent: [Piece] = []

    private struct Piece: Equatable, Sendable {
        let frames: Int
        let nanoseconds: Int64
    }

    private static let windowNanoseconds: Int64 = 2_000_000_000

    public init() {}

    /// Counts a whole clip.
    public mutating func add(_ clip: ClipTimes) {
        add(clip.frames, nanoseconds: clip.nanoseconds)
        clipNanoseconds = clip.nanoseconds
        firstFrameNanoseconds = clip.firstFrameNanoseconds
    }

    /// Counts frames and what decoding them took.
    public mutating func add(_ count: Int, nanoseconds: Int64) {
        frames += count
        firstFrameNanoseconds = firstFrameNanoseconds ?? nanoseconds
        recent.append(Piece(frames: count, nanoseconds: nanoseconds))
        // The piece that reaches beyond the window stays: there is always one.
        while recent.dropFirst().reduce(0, { $0 + $1.nanoseconds }) >= Self.windowNanoseconds { recent.removeFirst() }
    }

    /// Over the last two seconds of decoding; nil before any frame. Waiting for a picture to be shown is none.
    public var framesPerSecond: Double? {
        let nanoseconds = recent.reduce(0) { $0 + $1.nanoseconds }
        return nanoseconds > 0 ? 1e9 * Double(recent.reduce(0) { $0 + $1.frames }) / Double(nanoseconds) : nil
    }
}
