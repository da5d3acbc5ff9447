import XCTest

@testable import HandheldKit

final class NumbersTests: XCTestCase {
    func testEveryHalfComesBack() {
        for bits in UInt16.min...UInt16.max {
            let value = float(bits: bits)
            if value.isNaN {
                XCTAssertTrue(float(bits: halfBits(value)).isNaN)
            } else {
                XCTAssertEqual(halfBits(value), bits)
            }
        }
    }

    /// Between neighbouring halves: below the middle to the lower one, above it to the upper one, in it to the even one.
    func testRoundsToNearestEven() {
        for bits in UInt16(0)..<0x7BFF {
            let low = float(bits: bits), high = float(bits: bits + 1)
            let middle = (low + high) / 2
            XCTAssertEqual(halfBits(middle), bits % 2 == 0 ? bits : bits + 1)
            XCTAssertEqual(halfBits(middle.nextDown), bits)
            XCTAssertEqual(halfBits(middle.nextUp), bits + 1)
        }
        XCTAssertEqual(halfBits(65519), 0x7BFF)
        XCTAssertEqual(halfBits(65520), 0x7C00)
        XCTAssertEqual(halfBits(-.infinity), 0xFC00)
    }

    func testFramesAsBytes() throws {
        // Two frames of one row of two pixels: (channel, frame, x).
        let frames = try StreamFrames(clip: [-1, 1, 0, 2, -2, .nan, 1, 1, 0.5, -0.5, 0, 0], shape: [1, 3, 2, 1, 2])
        XCTAssertEqual(frames.shape, [2, 3, 1, 2])
        XCTAssertEqual(try frames.rgba(0), [0, 0, 191, 255, 255, 0, 64, 255])
        XCTAssertEqual(try frames.rgba(1), [128, 255, 128, 255, 255, 255, 128, 255])
        let image = try StreamFrames(clip: [-1, 1, 0, 2, -2, 0], shape: [1, 3, 1, 2])
        XCTAssertEqual(image.shape, [1, 3, 1, 2])
        XCTAssertEqual(try image.rgba(0), [0, 128, 0, 255, 255, 255, 128, 255])
        XCTAssertEqual(image.clip, [-1, 1, 0, 2, -2, 0])
        XCTAssertEqual(image.clipShape(rank: 4), [1, 3, 1, 2])
        XCTAssertEqual(image.clipShape(rank: 5), [1, 3, 1, 1, 2])
        XCTAssertThrowsError(try StreamFrames(clip: [0, 0], shape: [1, 3, 1, 1, 1]))
        XCTAssertThrowsError(try StreamFrames(clip: [0, 0], shape: [2, 1, 1, 1]), "two images")
        XCTAssertThrowsError(try StreamFrames(clip: [0, 0], shape: [1, 1, 2, 1, 1]).rgba(0))
    }

    func testClipsComeBack() throws {
        let values = (0..<24).map { Float($0) }
        let frames = try StreamFrames(clip: values, shape: [1, 2, 3, 2, 2])
        XCTAssertEqual(Array(frames.values[4..<8]), [12, 13, 14, 15], "the second channel of the first frame")
        XCTAssertEqual(frames.clip, values)
    }

    func testStridedTensorsAreCopiedRowMajor() {
        // (2, 3, 4) in rows of 4 of 8 elements, planes of 4 rows.
        let from = (0..<2 * 4 * 8).map { Int32($0) }
        var wanted: [Int32] = []
        for plane in [Int32(0), 32] {
            for row in [Int32(0), 8, 16] { wanted += plane + row..<plane + row + 4 }
        }
        let layouts: [(shape: [Int], strides: [Int])] = [
            ([2, 3, 4], [32, 8, 1]), ([1, 2, 3, 4], [999, 32, 8, 1]), ([2, 1, 3, 4], [32, 7, 8, 1]),
        ]
        for (shape, strides) in layouts {
            var to = [Int32](repeating: -1, count: 24)
            from.withUnsafeBytes { from in
                to.withUnsafeMutableBytes { to in copyContiguous(from, shape, strides, 4, to: to) }
            }
            XCTAssertEqual(to, wanted)
        }
        // Transposed: the last dimension is not contiguous.
        var turned = [Int32](repeating: -1, count: 6)
        from.withUnsafeBytes { from in
            turned.withUnsafeMutableBytes { to in copyContiguous(from, [2, 3], [1, 2], 4, to: to) }
        }
        XCTAssertEqual(turned, [0, 2, 4, 1, 3, 5])
        XCTAssertEqual(contiguousStrides([2, 3, 4]), [12, 4, 1])
    }

    func testParity() throws {
        let tolerance = Manifest.Tolerance(maxAbs: 0.1, minPSNRdB: nil, reason: "test")
        let same = try Parity(of: [0, 1], against: [0, 1], name: "y", range: -1...1)
        XCTAssertEqual(same.figures?.psnrDB, .infinity)
        XCTAssertNil(same.fault(tolerance))
        let off = try Parity(of: [0.2, 1], against: [0, 1], name: "y", range: -1...1)
        XCTAssertEqual(try XCTUnwrap(off.figures).psnrDB, 10 * log10(4 / 0.02), accuracy: 1e-4)
        XCTAssertNotNil(off.fault(tolerance))
        XCTAssertEqual(try Parity(of: [0, 1], against: [-1, 2], name: "y", range: nil).figures?.peak, 3)
        for broken in [Float.nan, .infinity] {
            XCTAssertNil(try Parity(of: [broken, 1], against: [0, 1], name: "y", range: nil).figures)
        }
        XCTAssertThrowsError(try Parity(of: [0], against: [0, 1], name: "y", range: nil))
    }

    func testClockAndMemory() throws {
        let (_, nanoseconds) = timed { (0..<1000).reduce(0, +) }
        XCTAssertGreaterThanOrEqual(nanoseconds, 0)
        let now = try XCTUnwrap(footprintBytes())
        XCTAssertGreaterThanOrEqual(try XCTUnwrap(peakFootprintBytes()), now)
    }
}
