/// How a streamed artefact is run: programs of fixed shapes, called one chunk of frames after the other.
///
/// `docs/streaming.md` describes the protocol. Which of a call's frames belong to the clip, and what the 0/1 matrices in
/// front of the time convolutions must be, follows from the whole numbers in here.
public struct StreamPlan: Equatable, Sendable {
    public let passes: [Pass]

    /// A stream of frames inside a segment, against the segment's input.
    public struct Timeline: Equatable, Sendable {
        /// Its frames per frame of the input.
        public let rate: Int
        /// Its frames that come before the clip's first one; negative where the clip begins earlier.
        public let delay: Int
        /// A clip of T input frames has T * rate - dropped frames here.
        public let dropped: Int

        /// Index in the clip of the first frame of a call; negative before the clip.
        func first(_ call: Int, _ chunk: Int) -> Int { call * chunk * rate - delay }

        func length(_ frames: Int) -> Int { frames * rate - dropped }
    }

    /// A convolution over time: its taps, and the stream that it reads.
    public struct TimeConv: Equatable, Sendable {
        public let kernel: Int
        public let at: Timeline
    }

    /// One program. Its tensors are frames-first: (frames, channels, height, width).
    public struct Segment: Equatable, Sendable {
        /// File or folder, relative to the artefact.
        public let program: String
        public let input: [Int]
        public let output: [Int]
        /// Frames of the first call's x before the clip's first one. Negative: so many of the clip's first frames are the
        /// last of the first call's first state, and x begins behind them.
        public let lead: Int
        public let convs: [TimeConv]
        public let states: [[Int]]
        public let end: Timeline
        public let halo: Int

        public var chunk: Int { input[0] }
        public var scale: Int { output[2] / input[2] }

        /// Names of the program's tensors, in the order in which `StreamProgram` has them.
        public var inputNames: [String] {
            ["x"] + convs.indices.map { "select_\($0)" } + states.indices.map { "state_\($0)" }
        }
        public var outputNames: [String] { ["y"] + states.indices.map { "new_state_\($0)" } }

        /// Shapes of the inputs and of the outputs, in the order of the names, as the programs declare them.
        public var inputShapes: [[Int]] { [input] + selectSizes.map { [1, $0, $0] } + states }
        public var outputShapes: [[Int]] { [output] + states }

        /// Side of each square select.
        public var selectSizes: [Int] { convs.map { $0.kernel - 1 + chunk * $0.at.rate } }

        /// Calls until every frame of a clip of `frames` input frames has come out.
        public func calls(_ frames: Int) -> Int {
            (end.length(frames) + end.delay + output[0] - 1) / output[0]
        }

        /// Which frames of a call's y belong to the clip; `frames` is nil while its end is not known.
        public func valid(_ call: Int, _ frames: Int?) -> Range<Int> {
            let first = end.first(call, chunk)
            let stop = frames.map { min(output[0], end.length($0) - first) } ?? output[0]
            let start = max(0, -first)
            return start..<max(start, stop)
        }

        /// For each convolution and row of its select the column that holds the one.
        public func sources(_ call: Int, _ frames: Int?) -> [[Int]] {
            zip(convs, selectSizes).map { conv, rows in
                let first = conv.at.first(call, chunk) - (conv.kernel - 1)
                return (0..<rows).map { row in
                    let inside = max(first + row, 0)
                    let source = frames.map { min(inside, conv.at.length($0) - 1) } ?? inside
                    return min(max(source - first, 0), rows - 1)
                }
            }
        }
    }

    /// Rows of the frame that are decoded together, all frames of the clip, before the next strip.
    public struct Strip: Equatable, Sendable {
        /// First row of each segment's window, in rows of that segment's input.
        public let starts: [Int]
        public let firstRow: Int
        public let rows: Int
    }

    /// Segments that run together, frames going through all of them before the next ones are read.
    public struct Pass: Equatable, Sendable {
        public let segments: [Segment]
        public let strips: [Strip]

        /// Channels, height and width of the frames that it makes.
        public var output: [Int] {
            let last = segments[segments.count - 1].output
            return [last[1], strips.reduce(0) { $0 + $1.rows }, last[3]]
        }

        func length(_ frames: Int) -> Int {
            segments.reduce(frames) { $1.end.length($0) }
        }
    }

    /// Frames that a clip of `frames` latent frames has.
    public func length(_ frames: Int) -> Int {
        passes.reduce(frames) { $1.length($0) }
    }

    /// Bytes of a pass' tensors, of the pass that has most: x, y, selects and states of every segment, and one segment's
    /// states once more, as new ones are written beside the old. Nil beyond 64 bits.
    public func tensorBytes(_ dtype: Manifest.DType) -> Int? {
        var most = 0
        for part in passes {
            var sum = 0, spare = 0
            for segment in part.segments {
                guard let states = bytes(segment.states, dtype),
                    let rest = bytes([segment.input, segment.output] + segment.selectSizes.map { [$0, $0] }, dtype),
                    let total = added(added(sum, states), rest)
                else { return nil }
                sum = total
                spare = max(spare, states)
            }
            guard let total = added(sum, spare) else { return nil }
            most = max(most, total)
        }
        return most
    }
}

private func bytes(_ shapes: [[Int]], _ dtype: Manifest.DType) -> Int? {
    shapes.reduce(0) { added($0, product($1 + [dtype.bytes])) }
}

private func added(_ a: Int?, _ b: Int?) -> Int? {
    guard let (sum, overflow) = b.flatMap({ b in a?.addingReportingOverflow(b) }), !overflow else { return nil }
    return sum
}

/// No number of a plan is above it, so that products of two need no care.
private let largest = Int64(Int32.max)

extension StreamPlan {
    init(_ field: Field) {
        passes = field.object("passes")("passes").list(least: 1, Pass.init)
    }

    /// What contradicts itself, or the latents (C, H', W') and frames (C, H, W); run only on a plan that parsed.
    func faults(latents: [Int], frames: [Int]) -> [String] {
        var faults: [String] = []
        let programs = passes.flatMap { $0.segments.map(\.program) }
        if Set(programs).count < programs.count { faults.append("passes: a program is used twice") }
        if let extent = (latents + frames).max(), extent > largest { return ["passes: nothing makes frames of \(frames)"] }
        var shape = latents, rate = 1
        for (index, part) in passes.enumerated() {
            if let fault = part.fault(shape) { return faults + ["passes[\(index)].\(fault)"] }
            shape = part.output
            for segment in part.segments {
                rate *= segment.end.rate
                if rate > largest { return faults + ["passes[\(index)]: more frames of one than \(largest)"] }
            }
        }
        if shape != frames { faults.append("passes: they make frames of \(shape), the bundle has \(frames)") }
        return faults
    }
}

extension StreamPlan.Pass {
    fileprivate init(_ field: Field) {
        let f = field.object("segments", "strips")
        segments = f("segments").list(least: 1, StreamPlan.Segment.init)
        strips = f("strips").list(least: 1, StreamPlan.Strip.init)
    }

    fileprivate func fault(_ shape: [Int]) -> String? {
        var heights = [shape[1]]
        var channels = shape[0], width = shape[2]
        for (index, segment) in segments.enumerated() {
            if let fault = segment.fault { return "segments[\(index)]: \(fault)" }
            guard segment.input[1] == channels, segment.input[3] == width, segment.input[2] <= heights[index] else {
                return "segments[\(index)].input: \(segment.input) does not take what comes before"
            }
            channels = segment.output[1]
            width = segment.output[3]
            heights.append(heights[index] * segment.scale)
            if heights[index + 1] > largest { return "segments[\(index)].output: more rows than \(largest)" }
        }
        var row = 0
        for (index, strip) in strips.enumerated() {
            if let fault = self.fault(strip, heights) { return "strips[\(index)]: \(fault)" }
            if strip.firstRow != row { return "strips[\(index)].first_row: the strip before ends at \(row)" }
            row += strip.rows
        }
        return row == heights[segments.count] ? nil : "strips: they cover \(row) rows of \(heights[segments.count])"
    }

    /// Why a strip's windows do not give its rows.
    private func fault(_ strip: StreamPlan.Strip, _ heights: [Int]) -> String? {
        guard strip.starts.count == segments.count else { return "not a start for each segment" }
        var wanted = zip(strip.starts, segments).map { ($0, $0 + $1.input[2]) }
        wanted.append((strip.firstRow, strip.firstRow + strip.rows))
        if wanted[0].1 > heights[0] { return "the first window ends at row \(wanted[0].1) of \(heights[0])" }
        for (index, segment) in segments.enumerated() {
            var top = wanted[index].0 * segment.scale, bottom = wanted[index].1 * segment.scale
            if top > 0 { top += segment.halo }
            if bottom < heights[index + 1] { bottom -= segment.halo }
            let (first, stop) = wanted[index + 1]
            if first < top || stop > bottom {
                return "rows \(first) to \(stop) are needed of segment \(index), which gives \(top) to \(bottom)"
            }
        }
        return nil
    }
}

extension StreamPlan.Segment {
    fileprivate init(_ field: Field) {
        let f = field.object("program", "units", "input", "output", "lead", "convs", "states", "end", "halo")
        func shape(_ field: Field) -> [Int] { field.list(least: 1) { $0.integer(least: 1, most: largest) } }
        program = f("program").relativePath()
        _ = f("units").list(least: 1) { $0.text() }
        input = shape(f("input"))
        output = shape(f("output"))
        lead = f("lead").integer(least: -largest, most: largest)
        convs = f("convs").list { conv in
            let f = conv.object("kernel", "at")
            return StreamPlan.TimeConv(kernel: f("kernel").integer(least: 2, most: largest), at: StreamPlan.Timeline(f("at")))
        }
        states = f("states").list(shape)
        end = StreamPlan.Timeline(f("end"))
        halo = f("halo").integer(most: largest)
    }

    fileprivate var fault: String? {
        guard input.count == 4, output.count == 4, states.allSatisfy({ $0.count == 4 }) else {
            return "4 dimensions are needed"
        }
        guard output[0] == chunk * end.rate else { return "its chunk and rate are not the frames of the output" }
        guard output[2] % input[2] == 0, output[3] == input[3] * scale else { return "height and width grow unlike" }
        guard states.map({ $0[0] }) == convs.map({ $0.kernel - 1 }) else { return "states that are not kernel - 1 frames" }
        guard lead < chunk else { return "a lead of \(lead) frames leaves none of \(chunk) for the clip" }
        if lead < 0 {
            guard convs.first?.at == .init(rate: 1, delay: lead, dropped: 0), states[0][1...] == input[1...], states[0][0] >= -lead
            else { return "a lead of \(lead) frames, and no first convolution that keeps as many frames of x" }
        }
        let delays = convs.dropFirst(lead < 0 ? 1 : 0).map(\.at.delay) + [end.delay]
        return delays.allSatisfy { $0 >= 0 } ? nil : "a negative delay: only what reads x may be early, by a lead"
    }
}

extension StreamPlan.Timeline {
    fileprivate init(_ field: Field) {
        let f = field.object("rate", "delay", "dropped")
        rate = f("rate").integer(least: 1, most: largest)
        delay = f("delay").integer(least: -largest, most: largest)
        dropped = f("dropped").integer(most: largest)
    }
}

extension StreamPlan.Strip {
    fileprivate init(_ field: Field) {
        let f = field.object("starts", "first_row", "rows")
        starts = f("starts").list(least: 1) { $0.integer(most: largest) }
        firstRow = f("first_row").integer(most: largest)
        rows = f("rows").integer(least: 1, most: largest)
    }
}
