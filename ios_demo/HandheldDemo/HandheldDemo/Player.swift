import CoreGraphics
import CoreML
import Foundation
import HandheldCoreML
import HandheldKit
import SwiftUI

/// Measures a bundle's decoder on its golden latents, and keeps what the screen shows of that.
@MainActor
final class Player: ObservableObject {
    @Published private(set) var images: [CGImage] = []
    @Published private(set) var latest: LiveMeter.Decoding?
    @Published private(set) var parity: Verdict?
    @Published private(set) var profileFile: URL?
    @Published private(set) var message: String?
    @Published private(set) var isRunning = false
    @Published var computeUnits = MLComputeUnits.all

    let name: String
    private let folder: URL
    private var task: Task<Void, Never>?

    init(folder: URL) {
        self.folder = folder
        name = folder.lastPathComponent
    }

    func toggle() {
        isRunning ? stop() : start()
    }

    func stop() {
        task?.cancel()
    }

    private func start() {
        isRunning = true
        message = nil
        task = Task {
            do {
                try await run()
            } catch {
                message = "\(error)"
            }
            isRunning = false
        }
    }

    private func run() async throws {
        let bundle = try ModelBundle(folder: folder)
        guard let artifact = bundle.manifest.artifacts.first(where: { $0.runtime == .coreml }) else {
            throw BundleError(.missing, "\(name) holds no Core ML model. Export it with `--target ios`.")
        }
        var measurement = Measurement()
        measurement.computeUnits = computeUnits
        let profile = try await measurement.profile(bundle, artifact) { run in
            self.latest = .init(nanoseconds: run.nanoseconds, frames: run.shape[2])
            if self.images.isEmpty { self.images = (try? Frames(run.frames, shape: run.shape).images()) ?? [] }
        }
        message = profile.subjects[0].error
        parity = profile.subjects[0].parity?.first.map { Verdict($0, artifact.tolerance) }
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("\(name).profile.json")
        try profile.write(to: file)
        profileFile = file
    }
}

/// A parity check as a person reads it.
struct Verdict {
    let decibels: String
    let largestError: String
    let fault: String?

    init(_ parity: Parity, _ tolerance: Manifest.Tolerance) {
        decibels = parity.figures.map { String(format: "%.1f dB", $0.psnrDB) } ?? "–"
        largestError = parity.figures.map { String(format: "%.2g", $0.maxAbsError) } ?? "–"
        fault = parity.fault(tolerance)
    }
}
