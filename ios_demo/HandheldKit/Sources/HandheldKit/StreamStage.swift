/// What comes next in a stream of frames.
enum StreamStep {
    /// Valid until the next step is asked for.
    case frames(StreamSlice)
    /// None now: more latents are needed.
    case starved
    case ended
}

/// Where a segment's frames come from.
protocol FrameSource: AnyObject {
    func next() throws -> StreamStep
}

/// A loaded segment.
public protocol StreamProgram {
    /// Runs once. Tensors are in the order of the plan: x, selects and states in; y and new states out, which are written.
    func call(_ inputs: [StreamTensor], _ outputs: [StreamTensor]) throws
}

/// A segment on one strip of one clip, which asks the segment before it for frames as it needs them.
final class StreamStage<Program: StreamProgram>: FrameSource {
    private let segment: StreamPlan.Segment
    private let program: Program
    private let source: FrameSource
    /// The rows that it takes of the source's frames.
    private let rows: Range<Int>
    private let pool: StreamTensorPool
    private let x: StreamTensor
    private let y: StreamTensor
    private let selects: [StreamTensor]
    private var columns: [[Int]] = []
    private var states: [StreamTensor]
    private var calls = 0
    /// Frames of x that are in place. Negative: so many go to the end of the first state before.
    private var filled: Int
    /// What came last, and how many frames of it were taken.
    private var arriving: StreamSlice?
    private var taken = 0
    /// Frames of the clip, once its end was seen.
    private var total: Int?

    init(
        _ segment: StreamPlan.Segment, _ program: Program, from source: FrameSource, rows: Range<Int>,
        _ dtype: Manifest.DType, _ pool: StreamTensorPool
    ) throws {
        self.segment = segment
        self.program = program
        self.source = source
        self.rows = rows
        self.pool = pool
        x = try StreamTensor(segment.input, dtype)
        y = try StreamTensor(segment.output, dtype)
        selects = try segment.selectSizes.map { try StreamTensor([1, 1, $0, $0], dtype) }
        states = try segment.states.map { try StreamTensor($0, dtype) }
        filled = segment.lead
    }

    func next() throws -> StreamStep {
        while true {
            take()
            if filled == segment.chunk {
                if let frames = try call() { return .frames(frames) }
            } else if let total {
                guard total > 0, calls < segment.calls(total) else { return .ended }
                pad()
                if let frames = try call() { return .frames(frames) }
            } else {
                switch try source.next() {
                case .frames(var slice):
                    slice.rows = slice.rows.lowerBound + rows.lowerBound..<slice.rows.lowerBound + rows.upperBound
                    arriving = slice
                    taken = 0
                case .starved: return .starved
                case .ended: total = calls * segment.chunk + filled - segment.lead
                }
            }
        }
    }

    /// Takes what fits into the first state and x of the frames that came.
    private func take() {
        while let slice = arriving, filled < segment.chunk {
            let to = filled < 0 ? states[0] : x
            let place = filled < 0 ? to.shape[0] + filled : filled
            let part = min(to.shape[0] - place, slice.frames.count - taken)
            slice.copy(part, from: taken, to: to, at: place)
            filled += part
            taken += part
            if taken == slice.frames.count { arriving = nil }
        }
    }

    /// Fills up x behind the clip's end. Any finite frames do, the selects leave them out: the last one again.
    private func pad() {
        let filled = max(self.filled, 0)
        let last = (filled + segment.chunk - 1) % segment.chunk
        let frame = StreamSlice(tensor: x, frames: last..<last + 1, rows: 0..<segment.input[2])
        for place in filled..<segment.chunk where place != last { frame.copy(1, from: 0, to: x, at: place) }
    }

    /// Runs the program, and gives the frames of y that are of the clip; nil where none is.
    private func call() throws -> StreamSlice? {
        try Task.checkCancellation()
        writeSelects(segment.sources(calls, total))
        let newStates = try segment.states.map(pool.take)
        try program.call([x] + selects + states, [y] + newStates)
        states.forEach(pool.give)
        states = newStates
        let valid = segment.valid(calls, total)
        calls += 1
        filled = 0
        return valid.isEmpty ? nil : StreamSlice(tensor: y, frames: valid, rows: 0..<segment.output[2])
    }

    /// They change at the clip's ends only.
    private func writeSelects(_ wanted: [[Int]]) {
        guard wanted != columns else { return }
        columns = wanted
        for (select, ones) in zip(selects, wanted) {
            var matrix = [Float](repeating: 0, count: ones.count * ones.count)
            for (row, column) in ones.enumerated() { matrix[row * ones.count + column] = 1 }
            select.fill(matrix)
        }
    }
}

extension StreamPlan.Pass {
    /// The pass' segments on one strip, the last of them; its frames have the rows of `output`.
    func chain<Program: StreamProgram>(
        _ strip: StreamPlan.Strip, _ programs: [Program], from source: FrameSource, firstRow: Int,
        _ dtype: Manifest.DType
    ) throws -> (last: FrameSource, output: Range<Int>) {
        let pool = StreamTensorPool(dtype)
        var last = source, top = firstRow
        for (index, segment) in segments.enumerated() {
            let start = strip.starts[index] - top
            let rows = start..<start + segment.input[2]
            last = try StreamStage(segment, programs[index], from: last, rows: rows, dtype, pool)
            top = strip.starts[index] * segment.scale
        }
        return (last, strip.firstRow - top..<strip.firstRow - top + strip.rows)
    }
}
