import XCTest

@testable import HandheldKit

final class StreamTests: XCTestCase {
    /// Decoders of box filters over time and rows, doubled in time where the plan says so: small enough to compute whole.
    private struct Box: StreamProgram {
        let segment: StreamPlan.Segment

        func call(_ inputs: [[Float]]) throws -> [[Float]] {
            var stream = inputs[0], frames = segment.chunk
            let plane = segment.input[2] * segment.input[3]
            var states: [[Float]] = []
            for (index, conv) in segment.convs.enumerated() {
                let held = inputs[1 + segment.convs.count + index], select = inputs[1 + index]
                let ext = held + stream
                let m = segment.selectSizes[index]
                states.append(Array(ext.suffix((conv.kernel - 1) * plane)))
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
            return [stream] + states
        }
    }

    func testAnyLengthInPassesAndStripsIsTheWholeClip() throws {
        for plan in [onePass, twoPassesOfStrips] {
            XCTAssertEqual(plan.faults(latents: [1, 8, 2], frames: [1, 8, 2]), [])
            for count in 1...7 {
                let clip = (0..<count * 16).map { Float(sin(Double($0) * 1.7)) }
                var out: [Float] = []
                let decoder = StreamDecoder(plan) { Box(segment: $0) }
                try decoder.decode(StreamFrames(clip, shape: [count, 1, 8, 2])) { out += $0.values }
                let whole = whole(clip, count)
                XCTAssertEqual(out.count, whole.count, "\(count) frames")
                for (a, b) in zip(out, whole) { XCTAssertEqual(a, b, accuracy: 1e-6, "\(count) frames") }
            }
        }
        XCTAssertThrowsError(
            try StreamDecoder(onePass) { Box(segment: $0) }.decode(StreamFrames([], shape: [0, 1, 8, 2])) { _ in })
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
    private func segment(_ program: String, rows: Int, chunk: Int) -> StreamPlan.Segment {
        .init(
            program: program, input: [chunk, 1, rows, 2], output: [2 * chunk, 1, rows, 2], lead: 0,
            convs: [
                .init(kernel: 3, at: .init(rate: 1, delay: 0, dropped: 0)),
                .init(kernel: 3, at: .init(rate: 2, delay: 3, dropped: 1)),
            ],
            states: [[2, 1, rows, 2], [2, 1, rows, 2]], end: .init(rate: 2, delay: 4, dropped: 1), halo: 2)
    }

    private var onePass: StreamPlan {
        let strip = StreamPlan.Strip(starts: [0, 0], firstRow: 0, rows: 8)
        return .init(passes: [.init(segments: [segment("a", rows: 8, chunk: 2), segment("b", rows: 8, chunk: 3)], strips: [strip])])
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

    private func whole(_ clip: [Float], _ count: Int) -> [Float] {
        var stream = clip, frames = count
        for _ in 0..<2 {
            for step in 0..<2 {
                let padded = Array(stream.prefix(16)) + stream + Array(stream.suffix(16))
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
