import Foundation

/// Decodes clips of any length by a plan, one clip at a time, in memory that does not grow with the clip.
///
/// Work is done as frames are asked for, and not ahead of that. Cancelling the task that asks ends it before the next call
/// of a program. A plan of several passes loads the programs of one at a time; what is between passes or strips goes to
/// files in `scratch`, which are gone when the clip is.
public actor StreamDecoder<Program: StreamProgram> {
    private let plan: StreamPlan
    private let dtype: Manifest.DType
    private let scratch: URL
    private let load: @Sendable (StreamPlan.Segment) async throws -> Program
    /// Of a plan of one pass, from the first clip on.
    private var kept: [Program]?
    private var clip: Clip?
    private var clips = 0

    /// Throws `.tensors` for a plan whose tensors would take more than `memoryBytes`.
    public init(
        _ plan: StreamPlan, dtype: Manifest.DType, scratch: URL = FileManager.default.temporaryDirectory,
        memoryBytes: UInt64 = ProcessInfo.processInfo.physicalMemory,
        load: @escaping @Sendable (StreamPlan.Segment) async throws -> Program
    ) throws {
        guard let size = plan.tensorBytes(dtype), size <= memoryBytes else {
            let size = plan.tensorBytes(dtype).map { "\($0) bytes" } ?? "more bytes than 64 bits count"
            throw BundleError(
                .tensors, "This plan's tensors take \(size), this device has \(memoryBytes). Export with a smaller --budget.")
        }
        self.plan = plan
        self.dtype = dtype
        self.scratch = scratch
        self.load = load
    }

    /// Loads the programs of a plan of one pass, which then stay loaded; does nothing for one of several.
    public func prepare() async throws {
        guard plan.passes.count == 1, kept == nil else { return }
        kept = try await programs(plan.passes[0])
    }

    /// Lets go of the clip under way and of all programs; the next clip loads them again.
    public func release() {
        clip = nil
        kept = nil
    }

    /// A clip's frames (t, C, H, W), in order, as they become final.
    ///
    /// - Parameter latents: pieces (T', C, H', W') of one clip, in order. They are asked for as they are needed, so they
    ///   may come live: of a causal decoder every frame comes out before a later latent is asked for. A first pass in
    ///   strips needs them all.
    ///
    /// Throws, as it is read, `.tensors` for latents of another shape or none, `CancellationError` where another clip was
    /// begun, and what a program reports. Cancelling the task that reads it ends it, with that error or without.
    public func frames<Latents: AsyncSequence>(
        from latents: Latents
    ) -> AsyncThrowingStream<StreamFrames, Error> where Latents.Element == StreamFrames {
        var iterator = latents.makeAsyncIterator()
        clips += 1
        clip = nil  // its memory, before that of the next one
        let id = clips
        clip = Clip(id: id, latents: LatentSource(plan.passes[0]), pull: { try await iterator.next() })
        return AsyncThrowingStream { try await self.next(id) }
    }

    /// The same, of latents that are all there.
    public func frames(of latents: StreamFrames) -> AsyncThrowingStream<StreamFrames, Error> {
        frames(from: AsyncStream { continuation in
            continuation.yield(latents)
            continuation.finish()
        })
    }

    private func next(_ id: Int) async throws -> StreamFrames? {
        while true {
            try Task.checkCancellation()
            let clip = try current(id)
            guard let run = clip.run else {
                guard clip.pass < plan.passes.count else {
                    self.clip = nil
                    return nil
                }
                try await begin(clip)
                continue
            }
            switch try run.last.next() {
            case .frames(var slice):
                slice.rows = run.output
                if let frames = try clip.finished(slice, plan) { return frames }
            case .starved:
                let latents = try await clip.pull()
                try current(id).latents.take(latents, dtype)
            case .ended: clip.endStrip(plan)
            }
        }
    }

    private func current(_ id: Int) throws -> Clip {
        guard let clip, clip.id == id else { throw CancellationError() }
        return clip
    }

    /// Loads what a strip needs and does not have yet.
    private func begin(_ clip: Clip) async throws {
        let part = plan.passes[clip.pass], strip = part.strips[clip.strip]
        if clip.strip == 0 && plan.passes.count > 1 { clip.programs = try await programs(part) }
        try await prepare()
        guard self.clip === clip, let programs = kept ?? clip.programs else { throw CancellationError() }
        if clip.strip == 0 && !(clip.pass == plan.passes.count - 1 && part.strips.count == 1) {
            clip.spool = try StreamSpool(part.output, dtype, in: scratch)
        }
        let first = part.segments[0]
        let source: FrameSource = try clip.before.map {
            try SpoolSource($0, row: strip.starts[0], window: first.input, dtype)
        } ?? clip.latents.rewound()
        let top = clip.before == nil ? 0 : strip.starts[0]
        clip.run = try part.chain(strip, programs, from: source, firstRow: top, dtype)
    }

    private func programs(_ part: StreamPlan.Pass) async throws -> [Program] {
        var programs: [Program] = []
        for segment in part.segments { programs.append(try await load(segment)) }
        return programs
    }

    /// A clip in the making.
    private final class Clip {
        let id: Int
        let latents: LatentSource
        let pull: () async throws -> StreamFrames?
        var pass = 0
        var strip = 0
        var programs: [Program]?
        /// What the pass before left, and what this one writes.
        var before: StreamSpool?
        var spool: StreamSpool?
        var run: (last: FrameSource, output: Range<Int>)?
        /// Frames of the strip so far.
        private var done = 0

        init(id: Int, latents: LatentSource, pull: @escaping () async throws -> StreamFrames?) {
            self.id = id
            self.latents = latents
            self.pull = pull
        }

        /// Takes what a strip made; gives the frames that are whole and of the last pass.
        func finished(_ slice: StreamSlice, _ plan: StreamPlan) throws -> StreamFrames? {
            guard let spool else { return slice.values() }
            let part = plan.passes[pass]
            try spool.write(slice, at: done, row: part.strips[strip].firstRow)
            let first = done
            done += slice.frames.count
            guard pass == plan.passes.count - 1 && strip == part.strips.count - 1 else { return nil }
            let whole = try StreamTensor([slice.frames.count] + part.output, slice.tensor.dtype)
            try spool.read(slice.frames.count, from: first, row: 0, into: whole)
            return StreamSlice(tensor: whole, frames: 0..<slice.frames.count, rows: 0..<part.output[1]).values()
        }

        /// On to the next strip, or to the next pass: its programs are loaded when this one's are gone.
        func endStrip(_ plan: StreamPlan) {
            run = nil
            done = 0
            strip += 1
            guard strip == plan.passes[pass].strips.count else { return }
            strip = 0
            pass += 1
            programs = nil
            before = spool
            spool = nil
        }
    }
}

/// The latents of a clip, as they come; kept for who reads them again.
private final class LatentSource: FrameSource {
    private let wanted: [Int]
    private let isReadAgain: Bool
    private var pieces: [StreamTensor] = []
    private var next_ = 0
    private var isEmpty = true
    private var isEnded = false

    init(_ part: StreamPlan.Pass) {
        isReadAgain = part.strips.count > 1
        // Strips read windows of the rows.
        let height = part.strips.map { $0.starts[0] + part.segments[0].input[2] }.max() ?? 0
        wanted = [part.segments[0].input[1], height, part.segments[0].input[3]]
    }

    /// Takes latents; nil is their end.
    func take(_ latents: StreamFrames?, _ dtype: Manifest.DType) throws {
        guard let latents else {
            guard !isEmpty else { throw BundleError(.tensors, "No latents to decode: one frame or more are needed.") }
            isEnded = true
            return
        }
        guard Array(latents.shape[1...]) == wanted, latents.count > 0 else {
            throw BundleError(
                .tensors, "Latents are \(latents.shape); this model takes (one frame or more, \(wanted[0]), \(wanted[1]), "
                    + "\(wanted[2])). Another height or width is another export.")
        }
        isEmpty = false
        let tensor = try StreamTensor(latents.shape, dtype)
        tensor.fill(latents.values)
        pieces.append(tensor)
    }

    func rewound() -> LatentSource {
        next_ = 0
        return self
    }

    func next() -> StreamStep {
        if !isReadAgain && next_ > 0 {
            pieces.removeFirst(next_)
            next_ = 0
        }
        guard next_ < pieces.count else { return isEnded ? .ended : .starved }
        let tensor = pieces[next_]
        next_ += 1
        return .frames(StreamSlice(tensor: tensor, frames: 0..<tensor.shape[0], rows: 0..<tensor.shape[2]))
    }
}
