import XCTest

@testable import HandheldKit

final class LatentsTests: XCTestCase {
    /// What `handheld` computes; `tests/fixtures/latents/make.py` explains.
    private struct Case: Decodable {
        struct Statistics: Decodable {
            let mean: [Double]
            let std: [Double]
            let scaling: Double
        }

        let statistics: Statistics
        let shape: [Int]
        let values: [Float]
        let normalise: [Float]
        let denormalise: [Float]
    }

    func testConvertsAsHandheldDoes() throws {
        let data = try Data(contentsOf: fixtures.appendingPathComponent("latents/conversions.json"))
        let cases = try JSONDecoder().decode([String: Case].self, from: data)
        XCTAssertGreaterThan(cases.count, 3)
        for (name, each) in cases {
            let statistics = Manifest.Statistics(
                mean: each.statistics.mean, std: each.statistics.std, scaling: each.statistics.scaling)
            XCTAssertEqual(try statistics.normalise(each.values, shape: each.shape), each.normalise, name)
            XCTAssertEqual(try statistics.denormalise(each.values, shape: each.shape), each.denormalise, name)
        }
    }

    private let latents = StreamFrames([1, 2, 3, 4], shape: [1, 2, 1, 2])

    private func spec(normalised: Bool, statistics: Manifest.Statistics?) -> Manifest.TensorSpec {
        Manifest.TensorSpec(
            name: "latents", shape: [1, 2, 1, 1, 2], dtype: .float32, layout: .ncthw, range: nil, description: "",
            statistics: statistics, normalised: normalised)
    }

    private var statistics: Manifest.Statistics { Manifest.Statistics(mean: [1, 2], std: [0.5], scaling: 2) }

    func testAModelIsGivenTheKindThatItTakes() async throws {
        let plain = spec(normalised: false, statistics: statistics), other = spec(normalised: true, statistics: statistics)
        XCTAssertEqual([plain.latentKind, other.latentKind], [.plain, .normalised])
        XCTAssertEqual(try plain.taken(latents, given: .plain), latents)
        XCTAssertEqual(try other.taken(latents, given: .plain).values, [0, 4, 4, 8])
        XCTAssertEqual(try plain.taken(latents, given: .normalised).values, [1.25, 1.5, 2.75, 3])
        let decoder = Echo().given(.normalised, plain)
        let decoded = try await decoder.decode(latents)
        XCTAssertEqual(decoded.values, [1.25, 1.5, 2.75, 3])
        let measured = try await decoder.measure(latents)
        XCTAssertEqual(measured.nanoseconds, 9, "the sum of what the decoder was given, 8.5, rounded")
        XCTAssertTrue(Echo().given(.plain, plain) is Echo)
        XCTAssertTrue(Echo().given(nil, plain) is Echo)
    }

    func testLatentsThatCannotBeConvertedAreRefused() throws {
        XCTAssertThrowsError(try spec(normalised: false, statistics: nil).taken(latents, given: .normalised)) {
            XCTAssertTrue("\($0)".contains("takes plain"), "\($0)")
        }
        let three = Manifest.Statistics(mean: [0], std: [1, 1, 1], scaling: 1)
        XCTAssertThrowsError(try spec(normalised: false, statistics: three).taken(latents, given: .normalised))
        XCTAssertThrowsError(try statistics.normalise([0], shape: [1]))
    }

    private func write(_ header: String, _ data: Data) throws -> URL {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID()).safetensors")
        addTeardownBlock { try? FileManager.default.removeItem(at: file) }
        try (withUnsafeBytes(of: UInt64(header.utf8.count).littleEndian) { Data($0) } + Data(header.utf8) + data).write(to: file)
        return file
    }

    func testFilesOfLatents() throws {
        var data = Data()
        for value in [1, 2, 3, 4] as [Float] { data += withUnsafeBytes(of: value) { Data($0) } }
        let clips = try LatentsFile(
            contentsOf: write(#"{"latents":{"dtype":"F32","shape":[2,1,2,1,1],"data_offsets":[0,16]}}"#, data))
        XCTAssertEqual(clips.latents, StreamFrames([1, 2], shape: [2, 1, 1, 1]), "the first clip")
        XCTAssertNil(clips.kind)
        XCTAssertEqual(try clips.kind(said: .normalised), .normalised)

        // 1 and -2 in bf16, of a program that names its only tensor as it likes.
        let image = try LatentsFile(
            contentsOf: write(
                ##"{"__metadata__":{"normalised":"yes"},"x":{"dtype":"BF16","shape":[1,2,1,1],"data_offsets":[0,4]}}"##,
                Data([0x80, 0x3F, 0x00, 0xC0])))
        XCTAssertEqual(image.latents, StreamFrames([1, -2], shape: [1, 2, 1, 1]))
        XCTAssertEqual(image.kind, .normalised)
        XCTAssertNoThrow(try image.kind(said: .normalised))
        XCTAssertThrowsError(try image.kind(said: .plain)) { XCTAssertTrue("\($0)".contains("normalised"), "\($0)") }

        let half = try LatentsFile(
            contentsOf: write(#"{"latents":{"dtype":"F16","shape":[1,1,1,1],"data_offsets":[0,2]}}"#, Data([0x00, 0x3C])))
        XCTAssertEqual(half.latents.values, [1])
        XCTAssertThrowsError(
            try LatentsFile(
                contentsOf: write(#"{"latents":{"dtype":"F16","shape":[1,1,1,1],"data_offsets":[0,2]}}"#, Data([0x00, 0x7C])))
        ) { XCTAssertTrue("\($0)".contains("NaN"), "\($0)") }
        XCTAssertThrowsError(try LatentsFile(contentsOf: fixtures.appendingPathComponent("bundles/good/golden.safetensors")))
    }

    func testABundleTakesItsFilesOfLatents() throws {
        let bundle = try ModelBundle(folder: fixtures.appendingPathComponent("bundles/good"))
        let header = #"{"__metadata__":{"normalised":"no"},"latents":{"dtype":"BF16","shape":[1,2,1,1,1],"data_offsets":[0,4]}}"#
        let file = try write(header, Data([0x80, 0x3F, 0x00, 0xC0]))
        XCTAssertEqual(try bundle.latents(.file(file)).values, [1, -2])
        XCTAssertThrowsError(try bundle.latents(.file(file), kind: .normalised))
        XCTAssertEqual(try bundle.latents(.golden("longer"), kind: .normalised).count, 2, "golden latents are as it takes them")
    }
}

/// Gives the latents back.
private struct Echo: ClipDecoder {
    let loadNanoseconds: Int64 = 1

    func plannedUnits() async throws -> [String: Int]? { nil }

    func measure(_ latents: StreamFrames) async throws -> ClipTimes {
        let sum = latents.values.reduce(0, +).rounded()
        return ClipTimes(frames: latents.count, nanoseconds: Int64(sum), firstFrameNanoseconds: nil)
    }

    func frames(of latents: StreamFrames) async throws -> AsyncThrowingStream<StreamFrames, Error> {
        AsyncThrowingStream { continuation in
            continuation.yield(latents)
            continuation.finish()
        }
    }
}
