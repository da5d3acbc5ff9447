import XCTest

@testable import HandheldKit

/// The bundles that Python and Kotlin walk too; `tests/fixtures/bundles/make.py` says how `expected.json` is read.
final class HostileBundleTests: XCTestCase {
    private struct Case: Decodable {
        let error: String?
        let says: [String]
        let remove: [String]?
        let links: [String: String]?
        let golden: [String: [Float]]?
    }

    private let source = fixtures.appendingPathComponent("bundles")
    private let manager = FileManager.default

    func testEachIsRefusedForTheExpectedReason() throws {
        let cases = try self.cases()
        XCTAssertGreaterThan(cases.count, 180)
        for (name, each) in cases.sorted(by: { $0.key < $1.key }) {
            try layOut(name, each) { bundle in
                guard let kind = each.error else { return XCTAssertNoThrow(try openFully(bundle), name) }
                XCTAssertThrowsError(try openFully(bundle), name) { error in
                    let refused = error as? BundleError
                    XCTAssertEqual(refused?.kind.rawValue, kind, "\(name): \(error)")
                    for part in each.says { XCTAssertTrue("\(error)".contains(part), "\(name) says \(error), not \(part)") }
                }
            }
        }
    }

    func testGoldenTensorsAreAsWritten() throws {
        let golden = try cases().filter { $0.value.golden != nil }
        XCTAssertEqual(golden.keys.sorted(), ["good", "image_taken", "pixels_taken"])
        for (name, each) in golden {
            try layOut(name, each) { folder in
                try openFully(folder)
                let bundle = try ModelBundle(folder: folder)
                for (name, first) in try XCTUnwrap(each.golden) {
                    let method = name.split(separator: ".").count > 2 ? name.split(separator: ".").last.map(String.init) : nil
                    let values = try XCTUnwrap(try bundle.golden(method: method).floats(name))
                    XCTAssertEqual(Array(values.prefix(first.count)), first, name)
                }
            }
        }
    }

    func testPixelsAreRefusedByDecodersOfFloats() throws {
        let file = source.appendingPathComponent("cases/pixels_taken/manifest.json")
        let manifest = try Manifest(parsing: [UInt8](try Data(contentsOf: file)), source: "manifest.json")
        XCTAssertEqual(manifest.outputs[0].frames([1, 3, 4, 5, 4]), 3)
        for artifact in manifest.artifacts {
            XCTAssertThrowsError(try artifact.floatOutput()) { XCTAssertTrue("\($0)".contains("--pixels float"), "\($0)") }
        }
    }

    func testAnImageIsMeasuredAsOneFrame() async throws {
        let source = self.source
        let manifest = try ModelBundle(folder: source.appendingPathComponent("good"))
        let output = manifest.manifest.outputs[0]
        XCTAssertEqual(manifest.manifest.artifacts[0].methods.map { output.frames($0.outputs[0]) }, [1, 3])
        let folder = manager.temporaryDirectory.appendingPathComponent("image-\(UUID())")
        defer { try? manager.removeItem(at: folder) }
        try manager.copyItem(at: source.appendingPathComponent("good"), to: folder)
        try lay(source.appendingPathComponent("cases/image_taken"), over: folder)
        let bundle = try ModelBundle(folder: folder)
        let artifact = bundle.manifest.artifacts.first { $0.runtime == .coreml }!
        let golden = try GoldenClip(bundle, nil)
        XCTAssertEqual(golden.latents.shape, [1, 2, 2, 2])
        XCTAssertNil(try artifact.shape(for: golden.latents))
        XCTAssertThrowsError(try artifact.shape(for: StreamFrames(Array(repeating: 0, count: 16), shape: [2, 2, 2, 2]))) {
            XCTAssertTrue("\($0)".contains("[1, 2, 2, 2, 2]"), "two frames are no image: \($0)")
        }
        let tensors = try bundle.golden()
        let frames = try StreamFrames(
            clip: try XCTUnwrap(tensors.floats("output.frames")), shape: try XCTUnwrap(tensors.shapes["output.frames"]))
        XCTAssertEqual(try frames.rgba(0).count, 4 * 4 * 4)
        var measurement = ClipMeasurement()
        (measurement.runs, measurement.warmup, measurement.rounds, measurement.cooldownNanoseconds) = (2, 0, 1, 0)
        let profile = try await measurement.profile(bundle, artifact, unitsAsked: "all", onRun: { _ in }) { _ in
            Picture(frames: frames)
        }
        XCTAssertNil(profile.subjects[0].error)
        XCTAssertEqual(profile.subjects[0].unitsPerRun, 1)
        XCTAssertEqual(profile.subjects[0].outputShapes, [[1, 3, 4, 4]])
        XCTAssertEqual(profile.subjects[0].parity?.compactMap(\.figures).map(\.maxAbsError), [0])
    }

    private func cases() throws -> [String: Case] {
        try JSONDecoder().decode([String: Case].self, from: Data(contentsOf: source.appendingPathComponent("expected.json")))
    }

    private func openFully(_ folder: URL) throws {
        let bundle = try ModelBundle(folder: folder)
        for artifact in bundle.manifest.artifacts { try bundle.check(artifact) }
        for method in bundle.shapes { _ = try bundle.golden(method: method) }
    }

    private func layOut(_ name: String, _ each: Case, _ body: (URL) throws -> Void) throws {
        let folder = manager.temporaryDirectory.appendingPathComponent("hostile-\(UUID())")
        try manager.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? manager.removeItem(at: folder) }
        let bundle = folder.appendingPathComponent("bundle")
        try manager.copyItem(at: source.appendingPathComponent("good"), to: bundle)
        let overlay = source.appendingPathComponent("cases/\(name)")
        if manager.fileExists(atPath: overlay.path) { try lay(overlay, over: bundle) }
        for path in each.remove ?? [] { try manager.removeItem(at: bundle.appendingPathComponent(path)) }
        for (at, target) in each.links ?? [:] {
            let place = bundle.appendingPathComponent(at)
            if target.hasPrefix("outside") {
                let outside = folder.appendingPathComponent(target)
                try manager.createDirectory(at: outside.deletingLastPathComponent(), withIntermediateDirectories: true)
                try manager.moveItem(at: place, to: outside)
                try manager.createSymbolicLink(at: place, withDestinationURL: outside)
            } else {
                try manager.createSymbolicLink(atPath: place.path, withDestinationPath: target)
            }
        }
        try body(bundle)
    }

    private struct Picture: ClipDecoder {
        let frames: StreamFrames
        let loadNanoseconds: Int64 = 1

        func plannedUnits() async throws -> [String: Int]? { nil }

        func measure(_ latents: StreamFrames) async throws -> ClipTimes {
            ClipTimes(frames: 1, nanoseconds: 1, firstFrameNanoseconds: nil)
        }

        func frames(of latents: StreamFrames) async throws -> AsyncThrowingStream<StreamFrames, Error> {
            let frames = frames
            return AsyncThrowingStream { continuation in
                continuation.yield(frames)
                continuation.finish()
            }
        }
    }

    private func lay(_ overlay: URL, over bundle: URL) throws {
        for path in try manager.subpathsOfDirectory(atPath: overlay.path) {
            let from = overlay.appendingPathComponent(path), to = bundle.appendingPathComponent(path)
            var isFolder: ObjCBool = false
            _ = manager.fileExists(atPath: from.path, isDirectory: &isFolder)
            if isFolder.boolValue {
                try manager.createDirectory(at: to, withIntermediateDirectories: true)
            } else {
                if manager.fileExists(atPath: to.path) { try manager.removeItem(at: to) }
                try manager.copyItem(at: from, to: to)
            }
        }
    }
}
