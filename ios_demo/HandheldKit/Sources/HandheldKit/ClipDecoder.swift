/// An artefact of a bundle, loaded: latents in, frames out.
public protocol ClipDecoder: Sendable {
    /// What loading took, in nanoseconds, without what is done once only, such as the compilation of a package. A streamed
    /// artefact of several passes loads while it decodes.
    var loadNanoseconds: Int64 { get }

    /// Operations by the unit that the runtime plans to run them on; nil where it does not tell.
    func plannedUnits() async throws -> [String: Int]?

    /// A clip's frames (t, C, H, W) in order, decoded as they are asked for; all at once from what is not streamed.
    /// Throws `BundleError(.tensors)`, now or as they are read, for latents (T', C, H', W') that the artefact does not take.
    func frames(of latents: StreamFrames) async throws -> AsyncThrowingStream<StreamFrames, Error>

    /// Decodes a clip to measure it; its frames are thrown away as they come.
    func measure(_ latents: StreamFrames) async throws -> ClipTimes
}

/// What decoding a clip took.
public struct ClipTimes: Equatable, Sendable {
    /// Frames that came out.
    public let frames: Int
    /// From latents to the last frame.
    public let nanoseconds: Int64
    /// From latents to the first frame; nil where all come at once.
    public let firstFrameNanoseconds: Int64?

    public init(frames: Int, nanoseconds: Int64, firstFrameNanoseconds: Int64?) {
        self.frames = frames
        self.nanoseconds = nanoseconds
        self.firstFrameNanoseconds = firstFrameNanoseconds
    }
}

extension ClipDecoder {
    /// All frames of a clip at once.
    public func decode(_ latents: StreamFrames) async throws -> StreamFrames {
        try await whole(try await frames(of: latents))
    }
}

extension StreamDecoder {
    /// All frames of a clip at once.
    public func decode(_ latents: StreamFrames) async throws -> StreamFrames {
        try await whole(frames(of: latents))
    }

    /// Decodes a clip to measure it; its frames are thrown away as they come.
    public func measure(_ latents: StreamFrames) async throws -> ClipTimes {
        let start = monotonicNanoseconds()
        var first: Int64?
        var count = 0
        for try await piece in frames(of: latents) {
            first = first ?? monotonicNanoseconds() - start
            count += piece.count
        }
        try Task.checkCancellation()  // which ends a stream early, as if it were whole
        return ClipTimes(
            frames: count, nanoseconds: monotonicNanoseconds() - start, firstFrameNanoseconds: first)
    }
}

private func whole(_ frames: AsyncThrowingStream<StreamFrames, Error>) async throws -> StreamFrames {
    var pieces: [StreamFrames] = []
    for try await piece in frames { pieces.append(piece) }
    try Task.checkCancellation()  // which ends a stream early, as if it were whole
    guard let whole = StreamFrames.joined(pieces) else {
        throw BundleError(.tensors, "The latents gave no frame.")
    }
    return whole
}
