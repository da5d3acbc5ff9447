import CoreGraphics
import CoreML
import Foundation
import HandheldCoreAI
import HandheldCoreML
import HandheldKit
import SwiftUI

/// Plays and measures what a bundle's decoder makes of latents, and keeps what the screen shows of that.
@MainActor
final class Player: ObservableObject {
    enum Activity { case none, playing, measuring }

    struct Clip: Identifiable {
        let source: ClipSource
        let name: String
        var id: ClipSource { source }
    }

    @Published private(set) var activity = Activity.none
    @Published private(set) var image: CGImage?
    @Published private(set) var meter = DecodingMeter()
    @Published private(set) var verdicts: [Verdict] = []
    @Published private(set) var profileFile: URL?
    @Published private(set) var message: String?
    @Published private(set) var artifacts: [Manifest.Artifact] = []
    @Published private(set) var clips: [Clip] = []
    @Published var artifact = "" { didSet { chosen() } }
    @Published var clip = ClipSource.golden(nil)
    @Published var computeUnits = MLComputeUnits.all
    /// What the bundle's model takes.
    @Published private(set) var latentKind = LatentKind.plain
    /// What a person says that the latents of a file are; nil leaves it to the file.
    @Published var fileKind: LatentKind?

    let name: String
    private let folder: URL
    private var task: Task<Void, Never>?
    private var isShortOfMemory = false

    private static let framesPerSecond = 24.0

    init(folder: URL) {
        self.folder = folder
        name = folder.lastPathComponent
    }

    /// Reads what there is to choose from.
    func open() {
        guard artifacts.isEmpty else { return }
        do {
            let bundle = try ModelBundle(folder: folder)
            artifacts = bundle.manifest.artifacts.filter(\.isOfApple)
            guard let first = artifacts.first else {
                throw BundleError(.missing, "\(name) holds no Core ML or Core AI model. Export it with `--target ios`.")
            }
            let golden = zip(bundle.shapes, bundle.manifest.artifacts[0].methods).map { shape, method in
                Clip(source: .golden(shape), name: "Golden, \(method.outputs[0].map(String.init).joined(separator: "×"))")
            }
            clips = golden + Library.latents().map { Clip(source: .file($0), name: $0.lastPathComponent) }
            latentKind = bundle.manifest.inputs[0].latentKind
            artifact = first.name
        } catch {
            message = "\(error)"
        }
    }

    func play() { run(.playing, playClip) }
    func measure() { run(.measuring, measureClip) }
    func stop() { task?.cancel() }

    /// Ends what runs where the system is about to end the app; decodes nothing ahead from the first warning on.
    func heedMemory() async {
        for await pressure in MemoryPressure.events {
            isShortOfMemory = true
            guard pressure == .critical, activity != .none else { continue }
            stop()
            message = "Stopped: the system is short of memory. Close other apps, or export with --stream and a smaller --budget."
        }
    }

    private func chosen() {
        verdicts = []
        profileFile = nil
    }

    private func run(_ activity: Activity, _ body: @escaping @MainActor () async throws -> Void) {
        guard self.activity == .none else { return }
        self.activity = activity
        message = nil
        meter = DecodingMeter()
        task = Task {
            Device.keepAwake(true)
            defer { Device.keepAwake(false) }
            do {
                try await body()
            } catch is CancellationError {
            } catch {
                message = "\(error)"
            }
            self.activity = .none
        }
    }

    private func opened() throws -> (ModelBundle, Manifest.Artifact) {
        let bundle = try ModelBundle(folder: folder)
        guard let artifact = bundle.manifest.artifacts.first(where: { $0.name == artifact }) else {
            throw BundleError(.missing, "\(name) holds no Core ML or Core AI model. Export it with `--target ios`.")
        }
        return (bundle, artifact)
    }

    private func playClip() async throws {
        let (bundle, artifact) = try opened()
        let latents = try bundle.latents(clip, kind: fileKind)
        let decoder = try await loaded(bundle, artifact, method: try artifact.shape(for: latents), computeUnits)
        let playback = try await Playback(decoder, latents, isAhead: !isShortOfMemory)
        let clock = ContinuousClock()
        var due = clock.now
        while let piece = try await playback.next() {
            meter.add(piece.frames.count, nanoseconds: piece.nanoseconds)
            for frame in 0..<piece.frames.count {
                image = try piece.frames.image(frame)
                // Late frames are shown late, the ones after them not in a rush.
                due = max(due, clock.now) + .seconds(1 / Self.framesPerSecond)
                try await clock.sleep(until: due)
            }
        }
    }

    private func measureClip() async throws {
        let (bundle, artifact) = try opened()
        var measurement = ClipMeasurement()
        if case .golden(let shape) = clip { measurement.method = shape }
        let units = computeUnits
        let asked = artifact.runtime == .coreai ? CoreAIUnits(units).profileName : units.profileName
        let profile = try await measurement.profile(bundle, artifact, unitsAsked: asked) { clip in
            self.meter.add(clip)
        } load: { method in
            try await loaded(bundle, artifact, method: method, units)
        }
        message = profile.subjects[0].error
        verdicts = (profile.subjects[0].parity ?? []).map { Verdict($0, artifact.tolerance) }
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("\(name).profile.json")
        try profile.write(to: file)
        profileFile = file
    }
}

extension Manifest.Artifact {
    fileprivate var isOfApple: Bool { runtime == .coreml || runtime == .coreai }
}

extension CoreAIUnits {
    /// What is asked of Core AI where a person chose units of Core ML.
    fileprivate init(_ units: MLComputeUnits) {
        switch units {
        case .cpuOnly: self = .cpuOnly
        case .cpuAndGPU: self = .preferGPU
        case .cpuAndNeuralEngine: self = .preferNeuralEngine
        default: self = .all
        }
    }
}

/// Opens an artefact with the runtime that it is for.
private func loaded(
    _ bundle: ModelBundle, _ artifact: Manifest.Artifact, method: String?, _ units: MLComputeUnits
) async throws -> any ClipDecoder {
    guard artifact.runtime == .coreai else {
        return try await openDecoder(bundle, artifact, method: method, computeUnits: units)
    }
    #if canImport(CoreAI)
        if #available(iOS 27.0, *) {
            return try await openCoreAIDecoder(bundle, artifact, method: method, units: CoreAIUnits(units))
        }
    #endif
    throw BundleError(.version, "\(artifact.name) needs iOS 27, and an app that was built with its SDK.")
}

/// A parity check as a person reads it.
struct Verdict: Identifiable {
    let id: String
    let decibels: String
    let largestError: String
    let fault: String?

    init(_ parity: Parity, _ tolerance: Manifest.Tolerance) {
        id = parity.method ?? "First shape"
        decibels = parity.figures.map { String(format: "%.1f dB", $0.psnrDB) } ?? "–"
        largestError = parity.figures.map { String(format: "%.2g", $0.maxAbsError) } ?? "–"
        fault = parity.fault(tolerance)
    }
}
