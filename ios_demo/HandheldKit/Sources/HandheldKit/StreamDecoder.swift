import Foundation

/// Frames of one strip, contiguous: (count, channels, rows, width).
public struct StreamFrames: Equatable, Sendable {
    public let values: [Float]
    public let shape: [Int]

    public var count: Int { shape[0] }

    public init(_ values: [Float], shape: [Int]) {
        precondition(shape.count == 4 && shape.reduce(1, *) == values.count)
        self.values = values
        self.shape = shape
    }

    /// Some of the rows of some of the frames.
    func cropped(_ frames: Range<Int>, _ rows: Range<Int>) -> StreamFrames {
        let width = shape[3], height = shape[2], channels = shape[1]
        if frames == 0..<count && rows == 0..<height { return self }
        var cut: [Float] = []
        cut.reserveCapacity(frames.count * channels * rows.count * width)
        for plane in frames.lowerBound * channels..<frames.upperBound * channels {
            cut += values[(plane * height + rows.lowerBound) * width..<(plane * height + rows.upperBound) * width]
        }
        return StreamFrames(cut, shape: [frames.count, channels, rows.count, width])
    }
}

/// A loaded segment. Arrays are in the order and shapes of the plan: x, selects, states in; y, new states out.
public protocol StreamProgram {
    func call(_ inputs: [[Float]]) throws -> [[Float]]
}

/// Decodes clips of any length by a plan. Loads one pass' programs at a time where there are several passes.
public struct StreamDecoder<Program: StreamProgram> {
    private let plan: StreamPlan
    private let load: (StreamPlan.Segment) throws -> Program

    public init(_ plan: StreamPlan, load: @escaping (StreamPlan.Segment) throws -> Program) {
        self.plan = plan
        self.load = load
    }

    /// Decodes a whole clip: latents (T', C, H', W') in, frames (t, C, H, W) out in order, as they become final.
    ///
    /// A plan of several passes or strips keeps what is between them in files in `folder`, which are removed at the end.
    public func decode(
        _ latents: StreamFrames, scratch folder: URL = FileManager.default.temporaryDirectory,
        onFrames: (StreamFrames) throws -> Void
    ) throws {
        var source: FrameSource = latents
        for (index, part) in plan.passes.enumerated() {
            let programs = try part.segments.map(load)
            let isLast = index == plan.passes.count - 1
            if isLast && part.strips.count == 1 {
                try Chain(part, part.strips[0], programs).run(source, onFrames)
                return
            }
            let spool = try Spool(part.output, in: folder)
            for (number, strip) in part.strips.enumerated() {
                var done = 0
                try Chain(part, strip, programs).run(source) { frames in
                    try spool.write(frames, at: done, row: strip.firstRow)
                    done += frames.count
                    guard isLast && number == part.strips.count - 1 else { return }
                    try onFrames(try spool.frames(done - frames.count..<done, rows: 0..<part.output[1]))
                }
            }
            source = spool
        }
    }
}

/// Where a pass reads a clip from.
private protocol FrameSource {
    var count: Int { get }
    func frames(_ range: Range<Int>, rows: Range<Int>) throws -> StreamFrames
}

extension StreamFrames: FrameSource {
    fileprivate func frames(_ range: Range<Int>, rows: Range<Int>) -> StreamFrames { cropped(range, rows) }
}

/// The segments of a pass on one strip, depth first.
private final class Chain<Program: StreamProgram> {
    private let stages: [Stage<Program>]
    /// Where each stage finds its window in the rows of the one before; last, where the strip's rows are.
    private let rows: [Range<Int>]
    private let window: Range<Int>
    private let chunk: Int

    init(_ part: StreamPlan.Pass, _ strip: StreamPlan.Strip, _ programs: [Program]) {
        stages = zip(part.segments, programs).map(Stage.init)
        let tops = zip(strip.starts, part.segments).map { $0 * $1.scale }
        let starts = strip.starts.dropFirst() + [strip.firstRow]
        let heights = part.segments.dropFirst().map { $0.input[2] } + [strip.rows]
        rows = zip(zip(starts, tops), heights).map { $0.0 - $0.1..<$0.0 - $0.1 + $1 }
        window = strip.starts[0]..<strip.starts[0] + part.segments[0].input[2]
        chunk = part.segments[0].chunk
    }

    func run(_ source: FrameSource, _ onFrames: (StreamFrames) throws -> Void) throws {
        guard source.count > 0 else {
            throw BundleError(.tensors, "No latents to decode: one frame or more are needed.")
        }
        for first in stride(from: 0, to: source.count, by: chunk) {
            let piece = try source.frames(first..<min(first + chunk, source.count), rows: window)
            try push(piece, 0, onFrames)
        }
        for index in stages.indices {
            try stages[index].finish { try self.push($0, index + 1, onFrames) }
        }
    }

    /// Frames in the rows of stage `index`, on through it and all that follow.
    private func push(_ frames: StreamFrames, _ index: Int, _ onFrames: (StreamFrames) throws -> Void) throws {
        let own = index == 0 ? frames : frames.cropped(0..<frames.count, rows[index - 1])
        guard index < stages.count else { return try onFrames(own) }
        try stages[index].push(own) { try self.push($0, index + 1, onFrames) }
    }
}

/// A segment on one strip of one clip.
private final class Stage<Program: StreamProgram> {
    private let segment: StreamPlan.Segment
    private let program: Program
    private var x: [Float]
    private var states: [[Float]]
    private var calls = 0
    /// Frames of x that are in place.
    private var filled: Int
    private let frameSize: Int

    init(_ segment: StreamPlan.Segment, _ program: Program) {
        self.segment = segment
        self.program = program
        frameSize = segment.input[1...].reduce(1, *)
        x = Array(repeating: 0, count: segment.chunk * frameSize)
        states = segment.states.map { Array(repeating: 0, count: $0.reduce(1, *)) }
        filled = segment.lead
    }

    func push(_ frames: StreamFrames, _ onFrames: (StreamFrames) throws -> Void) throws {
        var taken = 0
        while taken < frames.count {
            let part = min(segment.chunk - filled, frames.count - taken)
            let from = taken * frameSize..<(taken + part) * frameSize
            x.replaceSubrange(filled * frameSize..<(filled + part) * frameSize, with: frames.values[from])
            filled += part
            taken += part
            if filled == segment.chunk { try call(nil, onFrames) }
        }
    }

    /// Ends the clip: gives its last frames.
    func finish(_ onFrames: (StreamFrames) throws -> Void) throws {
        let total = calls * segment.chunk + filled - segment.lead
        while calls < segment.calls(total) {
            // Any finite frames do: the selects leave them out.
            let last = (filled + segment.chunk - 1) % segment.chunk
            let frame = Array(x[last * frameSize..<(last + 1) * frameSize])
            for place in filled..<segment.chunk {
                x.replaceSubrange(place * frameSize..<(place + 1) * frameSize, with: frame)
            }
            try call(total, onFrames)
        }
    }

    private func call(_ total: Int?, _ onFrames: (StreamFrames) throws -> Void) throws {
        let selects = segment.sources(calls, total).map(oneHot)
        let results = try program.call([x] + selects + states)
        guard results.map(\.count) == [segment.output.reduce(1, *)] + states.map(\.count) else {
            throw BundleError(.tensors, "\(segment.program) gave outputs of other sizes than the plan has.")
        }
        states = Array(results.dropFirst())
        let valid = segment.valid(calls, total)
        calls += 1
        filled = 0
        guard !valid.isEmpty else { return }
        try onFrames(StreamFrames(results[0], shape: segment.output).cropped(valid, 0..<segment.output[2]))
    }
}

private func oneHot(_ columns: [Int]) -> [Float] {
    var select = [Float](repeating: 0, count: columns.count * columns.count)
    for (row, column) in columns.enumerated() { select[row * columns.count + column] = 1 }
    return select
}

/// A clip's frames in a file of their own: written by strips of rows, read by windows of rows.
private final class Spool: FrameSource {
    private(set) var count = 0
    private let channels: Int
    private let height: Int
    private let width: Int
    private let file: URL
    private let handle: FileHandle

    init(_ shape: [Int], in folder: URL) throws {
        (channels, height, width) = (shape[0], shape[1], shape[2])
        file = folder.appendingPathComponent("handheld-\(UUID().uuidString).spool")
        guard FileManager.default.createFile(atPath: file.path, contents: nil) else {
            throw BundleError(.missing, "\(folder.path) cannot be written; frames between passes are kept there.")
        }
        handle = try FileHandle(forUpdating: file)
    }

    deinit {
        try? handle.close()
        try? FileManager.default.removeItem(at: file)
    }

    func write(_ frames: StreamFrames, at first: Int, row: Int) throws {
        let size = frames.shape[2] * width
        for plane in 0..<frames.count * channels {
            try handle.seek(toOffset: offset(first * channels + plane, row))
            try frames.values[plane * size..<(plane + 1) * size].withUnsafeBytes { try handle.write(contentsOf: Data($0)) }
        }
        count = max(count, first + frames.count)
    }

    func frames(_ range: Range<Int>, rows: Range<Int>) throws -> StreamFrames {
        var values: [Float] = []
        values.reserveCapacity(range.count * channels * rows.count * width)
        for plane in range.lowerBound * channels..<range.upperBound * channels {
            try handle.seek(toOffset: offset(plane, rows.lowerBound))
            let wanted = 4 * rows.count * width
            guard let data = try handle.read(upToCount: wanted), data.count == wanted else {
                throw BundleError(.missing, "A file of frames between passes was cut short: is the disk full?")
            }
            data.withUnsafeBytes { values += $0.bindMemory(to: Float.self) }
        }
        return StreamFrames(values, shape: [range.count, channels, rows.count, width])
    }

    private func offset(_ plane: Int, _ row: Int) -> UInt64 {
        4 * UInt64((plane * height + row) * width)
    }
}
