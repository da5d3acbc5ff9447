import XCTest

@testable import HandheldKit

final class StreamTests: XCTestCase {
    /// Decoders of box filters over time and rows, doubled in time where the plan says so: small enough to compute whole.
    private struct Box: StreamProgram {
        let segment: StreamPlan.Segment
        var log: Log?

        func call(_ inputs: [StreamTensor], _ outputs: [StreamTensor]) throws {
            log?.calls += 1
            log?.onCall?()
            let given = inputs.map { $0.floats() }
            var stream = given[0], frames = segment.chunk
            let plane = segment.input[2] * segment.input[3]
            for (index, conv) in segment.convs.enumerated() {
                let held = given[1 + segment.convs.count + index], select = given[1 + index]
                let ext = held + stream
                let m = segment.selectSizes[index]
                outputs[1 + index].fill(Array(ext.suffix((conv.kernel - 1) * plane)))
                let window = (0..<m).flatMap { row -> [Float] in
                    let column = (0..<m).first { select[row * m + $0] == 1 }!
                    return Array(ext[column * plane..<(column + 1) * plane])
                }
                stream = (0..<frames).flatMap { box(window, from: $0, conv.kernel, plane) }
                stream = blurRows(stream, width: segment.input[3], height: segment.input[2])
                if conv.at.rate != segment.end.rate {  // the upsampler after the first convolution
                    stream = double(stream, plane)
                    frames *= 2
                }
            }
            outputs[0].fill(stream)
        }
    }

    private final class Log: @unchecked Sendable {
        var calls = 0
        var onCall: (() -> Void)?
        /// Programs that are loaded, now and at most.
        var loaded = 0
        var most = 0
    }

    /// Counts how many of its kind there are at a time.
    private final class Counted: StreamProgram {
        private let box: Box
        private let log: Log

        init(_ segment: StreamPlan.Segment, _ log: Log) {
            box = Box(segment: segment, log: log)
            self.log = log
            log.loaded += 1
            log.most = max(log.most, log.loaded)
        }

        deinit { log.loaded -= 1 }

        func call(_ inputs: [StreamTensor], _ outputs: [StreamTensor]) throws { try box.call(inputs, outputs) }
    }

    func testAnyLengthInPassesAndStripsIsTheWholeClip() async throws {
        for (plan, dtype, accuracy) in [
            (onePass, Manifest.DType.float32, 1e-6), (twoPassesOfStrips, .float32, 1e-6), (firstPassInStrips, .float32, 1e-6),
            (onePass, .float16, 4e-3), (twoPassesOfStrips, .float16, 4e-3), (early, .float32, 1e-6), (early, .float16, 4e-3),
        ] as [(StreamPlan, Manifest.DType, Float)] {
            XCTAssertEqual(plan.faults(latents: [1, 8, 2], frames: [1, 8, 2]), [])
            let decoder = try StreamDecoder(plan, dtype: dtype) { Box(segment: $0) }
            for count in 1...7 {
                let latents = clip(count)
                let frames = try await decoder.decode(latents)
                let whole = whole(latents.values, count)
                XCTAssertEqual(frames.values.count, whole.count, "\(count) frames")
                for (a, b) in zip(frames.values, whole) { XCTAssertEqual(a, b, accuracy: accuracy, "\(count) frames") }
            }
        }
    }

    func testLatentsMayComeInPieces() async throws {
        let latents = clip(7)
        let whole = whole(latents.values, 7)
        for cuts in [[7], [1, 1, 1, 1, 1, 1, 1], [2, 4, 1], [5, 2]] {
            for plan in [onePass, firstPassInStrips, early] {
                let decoder = try StreamDecoder(plan, dtype: .float32) { Box(segment: $0) }
                var pieces: [StreamFrames] = [], start = 0
                for count in cuts {
                    let values = Array(latents.values[start * 16..<(start + count) * 16])
                    pieces.append(StreamFrames(values, shape: [count, 1, 8, 2]))
                    start += count
                }
                let asked = Asked(pieces)
                var out: [Float] = []
                for try await frames in await decoder.frames(from: AsyncStream { await asked.next() }) { out += frames.values }
                XCTAssertEqual(out.count, whole.count)
                for (a, b) in zip(out, whole) { XCTAssertEqual(a, b, accuracy: 1e-6) }
            }
        }
    }

    /// Of a causal decoder, all frames of a latent frame come before the next one is asked for.
    func testACausalDecoderWaitsForNothing() async throws {
        let plan = causal
        XCTAssertEqual(plan.faults(latents: [1, 8, 2], frames: [1, 8, 2]), [])
        let latents = clip(6)
        let asked = Asked((0..<6).map { StreamFrames(Array(latents.values[$0 * 16..<($0 + 1) * 16]), shape: [1, 1, 8, 2]) })
        let decoder = try StreamDecoder(plan, dtype: .float32) { Box(segment: $0) }
        var out: [Float] = []
        var after: [Int: Int] = [:]
        for try await frames in await decoder.frames(from: AsyncStream { await asked.next() }) {
            out += frames.values
            let taken = await asked.frames
            after[taken] = out.count / 16
        }
        XCTAssertEqual(after, Dictionary(uniqueKeysWithValues: (1...6).map { ($0, plan.length($0)) }))
        let whole = whole(latents.values, 6, before: 2)
        XCTAssertEqual(out.count, whole.count)
        for (a, b) in zip(out, whole) { XCTAssertEqual(a, b, accuracy: 1e-6) }
    }

    func testOnePassStaysLoadedAndOfSeveralThereIsOneAtATime() async throws {
        let log = Log()
        var decoder: StreamDecoder? = try StreamDecoder(onePass, dtype: .float32) { Counted($0, log) }
        try await decoder?.prepare()
        XCTAssertEqual(log.loaded, 2)
        _ = try await decoder?.decode(clip(3))
        let times = try await decoder?.measure(clip(5))
        XCTAssertEqual(times?.frames, onePass.length(5))
        XCTAssertLessThan(try XCTUnwrap(times?.firstFrameNanoseconds), try XCTUnwrap(times?.nanoseconds))
        XCTAssertEqual(log.most, 2)
        await decoder?.release()
        XCTAssertEqual(log.loaded, 0)

        decoder = try StreamDecoder(twoPassesOfStrips, dtype: .float32) { Counted($0, log) }
        log.most = 0
        _ = try await decoder?.decode(clip(3))
        XCTAssertEqual(log.most, 1)
        XCTAssertEqual(log.loaded, 0, "after the clip")
    }

    func testNothingIsDecodedThatNobodyAskedForAndCancellingEndsIt() async throws {
        let log = Log()
        let decoder = try StreamDecoder(onePass, dtype: .float32) { Box(segment: $0, log: log) }
        var iterator = await decoder.frames(of: clip(50)).makeAsyncIterator()
        _ = try await iterator.next()
        let calls = log.calls
        XCTAssertLessThan(calls, 10)
        let other = try await decoder.decode(clip(2))
        XCTAssertEqual(other.count, onePass.length(2))
        do {
            _ = try await iterator.next()
            XCTFail("a clip went on after another one was begun")
        } catch is CancellationError {}

        let before = log.calls
        for early in [true, false] {
            let task = Task {
                if early { withUnsafeCurrentTask { $0?.cancel() } }
                log.onCall = { withUnsafeCurrentTask { $0?.cancel() } }
                return try await decoder.measure(clip(50))
            }
            do {
                _ = try await task.value
                XCTFail("a cancelled clip came to its end")
            } catch is CancellationError {}
            XCTAssertEqual(log.calls, before + (early ? 0 : 1))
        }
        log.onCall = nil
        let after = try await decoder.decode(clip(2))
        XCTAssertEqual(after, other)
    }

    func testRefusesWhatItCannotDecode() async throws {
        let decoder = try StreamDecoder(onePass, dtype: .float32) { Box(segment: $0) }
        for shape in [[0, 1, 8, 2], [1, 2, 8, 2], [1, 1, 7, 2], [1, 1, 8, 3]] {
            let latents = StreamFrames(Array(repeating: 0, count: shape.reduce(1, *)), shape: shape)
            do {
                _ = try await decoder.decode(latents)
                XCTFail("\(shape)")
            } catch let error as BundleError {
                XCTAssertEqual(error.kind, .tensors)
            }
        }
        XCTAssertThrowsError(try StreamDecoder(onePass, dtype: .float32, memoryBytes: 1000) { Box(segment: $0) })
        do {
            let nowhere = URL(fileURLWithPath: "/nowhere")
            let decoder = try StreamDecoder(twoPassesOfStrips, dtype: .float32, scratch: nowhere) { Box(segment: $0) }
            _ = try await decoder.decode(clip(1))
            XCTFail("wrote to /nowhere")
        } catch let error as BundleError {
            XCTAssertEqual(error.kind, .missing)
        }
    }

    /// Files between passes do not outlive their clip, whether it ended or not.
    func testLeavesNoFiles() async throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("spools-\(UUID())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        func files() throws -> Int { try FileManager.default.contentsOfDirectory(atPath: folder.path).count }
        let decoder = try StreamDecoder(twoPassesOfStrips, dtype: .float32, scratch: folder) { Box(segment: $0) }
        _ = try await decoder.decode(clip(4))
        XCTAssertEqual(try files(), 0)
        var iterator = await decoder.frames(of: clip(4)).makeAsyncIterator()
        _ = try await iterator.next()
        XCTAssertGreaterThan(try files(), 0)
        await decoder.release()
        XCTAssertEqual(try files(), 0)
    }

    /// Memory for tensors is taken when a clip begins, and does not grow with it.
    func testCountsItsTensors() throws {
        // x, y, two selects and two states of each segment, and one segment's states once more.
        let a = 2 * 16 + 4 * 16 + (4 * 4 + 6 * 6) + 2 * 2 * 16
        let b = 3 * 16 + 6 * 16 + (5 * 5 + 8 * 8) + 2 * 2 * 16
        XCTAssertEqual(onePass.tensorBytes(.float32), 4 * (a + b + 2 * 2 * 16))
        XCTAssertEqual(onePass.tensorBytes(.float16), 2 * (a + b + 2 * 2 * 16))
    }

    func testKnowsProgramsThatAreNotThePlans() {
        let segment = onePass.passes[0].segments[0]
        func declared(_ names: [String], _ shapes: [[Int]]) -> [String: DeclaredTensor] {
            Dictionary(uniqueKeysWithValues: zip(names, shapes.map { DeclaredTensor(shape: $0, dtype: .float32) }))
        }
        let inputs = declared(segment.inputNames, segment.inputShapes)
        let outputs = declared(segment.outputNames, segment.outputShapes)
        XCTAssertEqual(segment.faults(inputs: inputs, outputs: outputs, .float32), [])
        XCTAssertEqual(segment.faults(inputs: inputs, outputs: outputs, .float16).count, 8)
        var other = inputs
        other["x"] = DeclaredTensor(shape: [9, 1, 8, 2], dtype: .float32)
        other["state_1"] = nil
        other["more"] = inputs["x"]
        XCTAssertEqual(segment.faults(inputs: other, outputs: outputs, .float32).count, 3)
    }

    /// Sources and valid frames as the host's scheduler computes them.
    func testSchedulesAsTheHostDoes() throws {
        let file = fixtures.appendingPathComponent("streaming/schedule.json")
        let cases = try JSON.parse([UInt8](try Data(contentsOf: file)))
        let faults = Faults()
        let plan = StreamPlan(Field(json: cases["plan"], place: "plan", faults: faults))
        XCTAssertEqual(faults.lines, [])
        struct Call: Decodable {
            let segment: Int
            let frames: Int?
            let call: Int
            let valid: [Int]
            let sources: [[Int]]
        }
        struct File: Decodable { let calls: [Call] }
        let calls = try JSONDecoder().decode(File.self, from: Data(contentsOf: file)).calls
        XCTAssertGreaterThan(calls.count, 20)
        let segments = plan.passes.flatMap(\.segments)
        for each in calls {
            let segment = segments[each.segment]
            let valid = segment.valid(each.call, each.frames)
            XCTAssertEqual(valid.isEmpty ? [] : [valid.lowerBound, valid.upperBound], each.valid)
            XCTAssertEqual(segment.sources(each.call, each.frames), each.sources)
        }
    }

    /// kernel 3 looking ahead, doubling in time that drops the first frame, kernel 3 again.
    private func segment(_ program: String, rows: Int, chunk: Int, lead: Int = 0, ahead: Int = 1) -> StreamPlan.Segment {
        // The upsampler drops the first frame of its output; a convolution delays by what it looks ahead.
        let doubled = 2 * (lead + ahead) + 1
        return .init(
            program: program, input: [chunk, 1, rows, 2], output: [2 * chunk, 1, rows, 2], lead: lead,
            convs: [
                .init(kernel: 3, at: .init(rate: 1, delay: lead, dropped: 0)),
                .init(kernel: 3, at: .init(rate: 2, delay: doubled, dropped: 1)),
            ],
            states: [[2, 1, rows, 2], [2, 1, rows, 2]], end: .init(rate: 2, delay: doubled + ahead, dropped: 1), halo: 2)
    }

    private var causal: StreamPlan {
        let segments = [segment("a", rows: 8, chunk: 1, ahead: 0), segment("b", rows: 8, chunk: 2, lead: 1, ahead: 0)]
        return .init(passes: [.init(segments: segments, strips: [.init(starts: [0, 0], firstRow: 0, rows: 8)])])
    }

    private var onePass: StreamPlan {
        let strip = StreamPlan.Strip(starts: [0, 0], firstRow: 0, rows: 8)
        return .init(passes: [.init(segments: [segment("a", rows: 8, chunk: 2), segment("b", rows: 8, chunk: 3)], strips: [strip])])
    }

    /// The first frames of each segment go to its first state; the second's rows are those of a strip.
    private var early: StreamPlan {
        let top = StreamPlan.Strip(starts: [0, 0], firstRow: 0, rows: 4)
        let bottom = StreamPlan.Strip(starts: [0, 2], firstRow: 4, rows: 4)
        let segments = [segment("a", rows: 8, chunk: 2, lead: -1), segment("b", rows: 6, chunk: 1, lead: -1)]
        return .init(passes: [.init(segments: segments, strips: [top, bottom])])
    }

    private var firstPassInStrips: StreamPlan {
        let top = StreamPlan.Strip(starts: [0], firstRow: 0, rows: 4)
        let bottom = StreamPlan.Strip(starts: [2], firstRow: 4, rows: 4)
        let whole = StreamPlan.Strip(starts: [0], firstRow: 0, rows: 8)
        return .init(passes: [
            .init(segments: [segment("a", rows: 6, chunk: 1)], strips: [top, bottom]),
            .init(segments: [segment("b", rows: 8, chunk: 2)], strips: [whole]),
        ])
    }

    private var twoPassesOfStrips: StreamPlan {
        let whole = StreamPlan.Strip(starts: [0], firstRow: 0, rows: 8)
        let top = StreamPlan.Strip(starts: [0], firstRow: 0, rows: 4)
        let bottom = StreamPlan.Strip(starts: [2], firstRow: 4, rows: 4)
        return .init(passes: [
            .init(segments: [segment("a", rows: 8, chunk: 2)], strips: [whole]),
            .init(segments: [segment("b", rows: 6, chunk: 1)], strips: [top, bottom]),
        ])
    }

    private func clip(_ count: Int) -> StreamFrames {
        StreamFrames((0..<count * 16).map { Float(sin(Double($0) * 1.7)) }, shape: [count, 1, 8, 2])
    }

    /// Of convolutions that see `before` frames before theirs and 2 - `before` after it.
    private func whole(_ clip: [Float], _ count: Int, before: Int = 1) -> [Float] {
        var stream = clip, frames = count
        for _ in 0..<2 {
            for step in 0..<2 {
                let start = Array(repeating: Array(stream.prefix(16)), count: before).flatMap { $0 }
                let end = Array(repeating: Array(stream.suffix(16)), count: 2 - before).flatMap { $0 }
                let padded = start + stream + end
                stream = (0..<frames).flatMap { box(padded, from: $0, 3, 16) }
                stream = blurRows(stream, width: 2, height: 8)
                if step == 0 {
                    stream = Array(double(stream, 16).dropFirst(16))
                    frames = 2 * frames - 1
                }
            }
        }
        return stream
    }
}

/// Pieces of latents, and how many frames were asked for.
private actor Asked {
    private var pieces: [StreamFrames]
    private(set) var frames = 0

    init(_ pieces: [StreamFrames]) { self.pieces = pieces }

    func next() -> StreamFrames? {
        guard !pieces.isEmpty else { return nil }
        frames += pieces[0].count
        return pieces.removeFirst()
    }
}

/// Mean of `kernel` frames from one on.
private func box(_ frames: [Float], from first: Int, _ kernel: Int, _ plane: Int) -> [Float] {
    (0..<plane).map { place in
        (0..<kernel).reduce(0) { $0 + frames[(first + $1) * plane + place] } / Float(kernel)
    }
}

/// Weighted sum of three rows, zeros beyond the edges.
private func blurRows(_ frames: [Float], width: Int, height: Int) -> [Float] {
    frames.indices.map { index in
        let row = index / width % height
        let above = row > 0 ? frames[index - width] : 0
        let below = row < height - 1 ? frames[index + width] : 0
        return 0.25 * above + 0.5 * frames[index] + 0.25 * below
    }
}

/// Every frame as it is and then half of it.
private func double(_ frames: [Float], _ plane: Int) -> [Float] {
    stride(from: 0, to: frames.count, by: plane).flatMap { start -> [Float] in
        let frame = Array(frames[start..<start + plane])
        return frame + frame.map { $0 / 2 }
    }
}
