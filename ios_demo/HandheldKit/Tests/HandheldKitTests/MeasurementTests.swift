import XCTest

@testable import HandheldKit

/// A decoder that gives what it is told to, of the shared bundle's two shapes.
private struct Canned: ClipDecoder {
    let answers: [Int: StreamFrames]
    var loadNanoseconds: Int64 = 7
    var firstFrame: Int64?
    var log: Log?

    final class Log: @unchecked Sendable {
        var methods: [String?] = []
        var decoded = 0
    }

    func plannedUnits() async throws -> [String: Int]? { ["cpu": 3] }

    func measure(_ latents: StreamFrames) async throws -> ClipTimes {
        log?.decoded += 1
        return ClipTimes(frames: latents.count, nanoseconds: 1000, firstFrameNanoseconds: firstFrame)
    }

    func frames(of latents: StreamFrames) async throws -> AsyncThrowingStream<StreamFrames, Error> {
        guard let frames = answers[latents.count] else { throw BundleError(.tensors, "\(latents.count) frames") }
        return AsyncThrowingStream { continuation in
            continuation.yield(frames)
            continuation.finish()
        }
    }
}

final class MeasurementTests: XCTestCase {
    private func bundle() throws -> ModelBundle {
        try ModelBundle(folder: fixtures.appendingPathComponent("bundles/good"))
    }

    private func core(_ bundle: ModelBundle) -> Manifest.Artifact {
        bundle.manifest.artifacts.first { $0.runtime == .coreml }!
    }

    /// The golden frames of both shapes, by the number of latent frames.
    private func golden(_ bundle: ModelBundle) throws -> [Int: StreamFrames] {
        var answers: [Int: StreamFrames] = [:]
        for method in bundle.shapes {
            let tensors = try bundle.golden(method: method)
            let name = "output.frames" + (method.map { ".\($0)" } ?? "")
            let frames = try StreamFrames(clip: try XCTUnwrap(tensors.floats(name)), shape: try XCTUnwrap(tensors.shapes[name]))
            answers[try GoldenClip(bundle, method).latents.count] = frames
        }
        return answers
    }

    private var quick: ClipMeasurement {
        var measurement = ClipMeasurement()
        (measurement.runs, measurement.warmup, measurement.rounds, measurement.cooldownNanoseconds) = (3, 1, 2, 0)
        return measurement
    }

    func testRecordsEveryRunAndTheParityOfEveryShape() async throws {
        let bundle = try bundle(), log = Canned.Log()
        let answers = try golden(bundle)
        var measurement = quick
        for method in [nil, "longer"] as [String?] {
            log.methods = []
            measurement.method = method
            let profile = try await measurement.profile(bundle, core(bundle), unitsAsked: "all", onRun: { _ in }) {
                log.methods.append($0)
                return Canned(answers: answers, firstFrame: 400)
            }
            XCTAssertEqual(log.methods, [method, method, method == nil ? "longer" : nil])
            let subject = profile.subjects[0]
            XCTAssertNil(subject.error)
            XCTAssertEqual(subject.rounds.map(\.latencyNanoseconds), [[1000, 1000, 1000], [1000, 1000, 1000]])
            XCTAssertEqual(subject.rounds.map(\.firstFrameNanoseconds), [[400, 400, 400], [400, 400, 400]])
            XCTAssertEqual(subject.rounds[0].loadNanoseconds, 7)
            XCTAssertEqual(subject.unitsPerRun, method == nil ? 1 : 3)
            XCTAssertEqual(subject.method, method ?? "forward")
            XCTAssertEqual(subject.unitsObserved, ["cpu": 3])
            XCTAssertEqual(subject.parity?.map(\.method), [nil, "longer"])
            XCTAssertEqual(subject.parity?.compactMap(\.figures).map(\.maxAbsError), [0, 0])
            XCTAssertEqual(try Profile(parsing: Array(profile.json.text.utf8), source: "profile.json"), profile)
        }
    }

    func testKeepsWhatWasMeasuredBeforeAFailure() async throws {
        let bundle = try bundle()
        let answers = try golden(bundle).filter { $0.key == 1 }
        let profile = try await quick.profile(bundle, core(bundle), unitsAsked: "all", onRun: { _ in }) { _ in
            Canned(answers: answers)
        }
        let subject = profile.subjects[0]
        XCTAssertEqual(subject.error, "2 frames", "the other shape cannot be decoded")
        XCTAssertEqual(subject.rounds.count, 2)
        XCTAssertEqual(subject.parity?.count, 1)

        let wrong = try golden(bundle).mapValues { StreamFrames($0.values.map { $0 + 1 }, shape: $0.shape) }
        let off = try await quick.profile(bundle, core(bundle), unitsAsked: "all", onRun: { _ in }) { _ in
            Canned(answers: wrong)
        }
        XCTAssertNil(off.subjects[0].error)
        XCTAssertEqual(off.subjects[0].parity?.compactMap { $0.fault(core(bundle).tolerance) }.count, 2)

        let none = try await quick.profile(bundle, core(bundle), unitsAsked: "all", onRun: { _ in }) { _ in
            throw BundleError(.version, "needs a newer system")
        }
        XCTAssertEqual(none.subjects[0].error, "needs a newer system")
        XCTAssertNil(none.subjects[0].parity)
        XCTAssertEqual(try Profile(parsing: Array(none.json.text.utf8), source: "profile.json"), none)
    }

    func testAStoppedMeasurementSaysSo() async throws {
        let bundle = try bundle(), log = Canned.Log()
        let answers = try golden(bundle)
        let task = Task {
            try await quick.profile(bundle, core(bundle), unitsAsked: "all", onRun: { _ in
                withUnsafeCurrentTask { $0?.cancel() }
            }) { _ in Canned(answers: answers, log: log) }
        }
        let profile = try await task.value
        XCTAssertEqual(log.decoded, 1)
        XCTAssertTrue(try XCTUnwrap(profile.subjects[0].error).contains("stopped"))
        XCTAssertNotNil(profile.subjects[0].rounds[0].firstRunNanoseconds)
    }

    func testPlaysOnePieceAhead() async throws {
        let log = Canned.Log()
        let pieces = (0..<5).map { StreamFrames([Float($0)], shape: [1, 1, 1, 1]) }
        let decoder = Pieces(pieces: pieces, log: log)
        for isAhead in [true, false] {
            log.decoded = 0
            let playback = try await Playback(decoder, pieces[0], isAhead: isAhead)
            XCTAssertEqual(log.decoded, 0)
            var shown: [StreamFrames] = []
            while let piece = try await playback.next() {
                shown.append(piece.frames)
                for _ in 0..<100 { await Task.yield() }
                XCTAssertLessThanOrEqual(log.decoded, shown.count + (isAhead ? 1 : 0))
            }
            XCTAssertEqual(shown, pieces)
        }
    }

    func testTheMeterLooksBackTwoSeconds() {
        var meter = DecodingMeter()
        XCTAssertNil(meter.framesPerSecond)
        meter.add(1, nanoseconds: 5_000_000_000)
        XCTAssertEqual(meter.framesPerSecond, 0.2)
        for _ in 0..<8 { meter.add(8, nanoseconds: 500_000_000) }
        XCTAssertEqual(meter.framesPerSecond, 16)
        XCTAssertEqual(meter.frames, 65)
        XCTAssertEqual(meter.firstFrameNanoseconds, 5_000_000_000)
        XCTAssertNil(meter.clipNanoseconds)
    }

    func testLatentsOfAFileFindTheirShape() throws {
        let bundle = try bundle()
        let artifact = core(bundle)
        XCTAssertNil(try artifact.shape(for: StreamFrames(Array(repeating: 0, count: 8), shape: [1, 2, 2, 2])))
        XCTAssertEqual(try artifact.shape(for: StreamFrames(Array(repeating: 0, count: 16), shape: [2, 2, 2, 2])), "longer")
        XCTAssertThrowsError(try artifact.shape(for: StreamFrames(Array(repeating: 0, count: 24), shape: [3, 2, 2, 2]))) {
            XCTAssertTrue("\($0)".contains("[1, 2, 1, 2, 2]"), "\($0)")
        }
    }

    func testCompiledModelsAreMadeOnceAndGoWithTheirBundle() async throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("caches-\(UUID())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let kept = CompiledModels(folder: folder)
        let hash = String(repeating: "a", count: 64), other = String(repeating: "b", count: 64)
        func place(_ sha256: String, _ program: String?) async throws -> URL {
            try await kept.url(sha256: sha256, program: program) {
                let fresh = folder.appendingPathComponent(UUID().uuidString)
                try FileManager.default.createDirectory(at: fresh, withIntermediateDirectories: true)
                return fresh
            }
        }
        let places = [
            try await place(hash, nil), try await place(hash, "1.mlpackage"), try await place(hash, "2.mlpackage"),
            try await place(other, "1.mlpackage"),
        ]
        XCTAssertEqual(Set(places).count, 4)
        let again = try await kept.url(sha256: hash, program: "1.mlpackage") { throw BundleError(.missing, "compiled twice") }
        XCTAssertEqual(again.path, places[1].path)
        try kept.keep(only: [hash])
        XCTAssertEqual(places.map { FileManager.default.fileExists(atPath: $0.path) }, [true, true, true, false])
    }

    func testModelsForANewerSystemAreRefused() throws {
        func artifact(_ target: String) throws -> Manifest.Artifact {
            let text = try String(contentsOf: fixtures.appendingPathComponent("bundles/good/manifest.json"), encoding: .utf8)
            let edited = text.replacingOccurrences(
                of: #""settings": {}"#, with: #""settings": {"minimum_deployment_target": "\#(target)"}"#)
            return try Manifest(parsing: Array(edited.utf8), source: "manifest.json").artifacts[2]
        }
        func system(_ major: Int) -> OperatingSystemVersion { .init(majorVersion: major, minorVersion: 0, patchVersion: 0) }
        XCTAssertNoThrow(try artifact("iOS17").checkSystem(system(26)))
        XCTAssertThrowsError(try artifact("iOS18").checkSystem(system(14))) { error in
            XCTAssertEqual((error as? BundleError)?.kind, .version)
        }
        XCTAssertNoThrow(try artifact("").checkSystem(system(1)), "no target is named")
    }
}

private struct Pieces: ClipDecoder {
    let pieces: [StreamFrames]
    let log: Canned.Log
    let loadNanoseconds: Int64 = 0

    func plannedUnits() async throws -> [String: Int]? { nil }
    func measure(_ latents: StreamFrames) async throws -> ClipTimes { fatalError("not asked for") }
    func frames(of latents: StreamFrames) async throws -> AsyncThrowingStream<StreamFrames, Error> {
        let pieces = pieces, log = log
        return AsyncThrowingStream {
            guard log.decoded < pieces.count else { return nil }
            log.decoded += 1
            return pieces[log.decoded - 1]
        }
    }
}
