import Foundation

/// Measures an artefact on this device, as `handheld profile` measures one on a host.
public struct ClipMeasurement: Sendable {
    public var runs = 20
    public var warmup = 2
    public var rounds = 3
    public var cooldownNanoseconds: UInt64 = 5_000_000_000
    /// The shape, or the length of a streamed artefact's clip, whose golden latents are decoded; nil is the first.
    public var method: String?

    public init() {}

    /// Runs golden latents through the artefact and gives the profile, with the parity of all shapes.
    ///
    /// Cancelling the task ends it after the run under way; what was measured by then is kept, with the reason as the
    /// subject's error.
    ///
    /// - Parameters:
    ///   - unitsAsked: what the decoder is told to run on, as profiles name it.
    ///   - onRun: what a person may watch while it runs.
    ///   - load: opens the artefact in one of its shapes, nil being the first. One decoder is there at a time.
    ///
    /// Throws `BundleError` for a bundle that is not sound; what fails later becomes the subject's error.
    public func profile(
        _ bundle: ModelBundle, _ artifact: Manifest.Artifact, unitsAsked: String,
        onRun: @Sendable @MainActor (ClipTimes) -> Void,
        load: @Sendable (String?) async throws -> any ClipDecoder
    ) async throws -> Profile {
        try bundle.check(artifact)
        var subject = Profile.Subject(label: "\(artifact.name), \(unitsAsked)", bundle: 0, artifact, bundle.manifest.outputs[0], method: method)
        subject.unitsAsked = unitsAsked
        subject.runtimeVersion = ProcessInfo.processInfo.operatingSystemVersionString
        let golden = try GoldenClip(bundle, method)
        var parities: [String?: Parity] = [:]
        do {
            var decoder: (any ClipDecoder)?
            for index in 0..<rounds {
                decoder = nil
                if index > 0 { try await Task.sleep(nanoseconds: cooldownNanoseconds) }
                subject.rounds.append(Profile.Round(before: await DeviceState.now, after: DeviceState()))
                let peakBefore = peakFootprintBytes()
                subject.rounds[index].baselineBytes = footprintBytes().map { Int($0) }
                let loaded = try await load(method)
                decoder = loaded
                subject.rounds[index].loadNanoseconds = max(1, Int(loaded.loadNanoseconds))
                for run in 0..<1 + warmup + runs {
                    try Task.checkCancellation()
                    let times = try await loaded.measure(golden.latents)
                    subject.rounds[index].add(times, first: run == 0, timed: run > warmup)
                    await onRun(times)
                }
                // The system's peak is of the process' whole life: it tells this round's only where it grew.
                if let before = peakBefore, let after = peakFootprintBytes(), after > before {
                    subject.rounds[index].peakBytes = Int(after)
                }
                subject.rounds[index].after = await DeviceState.now
            }
            subject.unitsObserved = try await decoder?.plannedUnits()
            for shape in [method] + bundle.shapes.filter({ $0 != method }) {
                try Task.checkCancellation()
                if shape != method && artifact.stream == nil {  // one program a shape
                    decoder = nil
                    decoder = try await load(shape)
                }
                let golden = try GoldenClip(bundle, shape)
                if let decoder { parities[shape] = try golden.parity(try await decoder.decode(golden.latents)) }
            }
        } catch is CancellationError {
            subject.error = "It was stopped before all rounds were run."
        } catch {
            subject.error = "\(error)"
        }
        if !parities.isEmpty { subject.parity = bundle.shapes.compactMap { parities[$0] } }
        return Profile(
            createdUTC: Profile.timestamp, software: Profile.software,
            settings: Profile.Settings(
                runs: runs, warmup: warmup, rounds: rounds, cooldownNanoseconds: Int(cooldownNanoseconds)),
            device: await Profile.Device.this, bundles: [Profile.Origin(bundle.manifest)], subjects: [subject])
    }
}

extension Profile.Round {
    fileprivate mutating func add(_ clip: ClipTimes, first: Bool, timed: Bool) {
        // A clock may stand still between two looks; the format has no 0.
        if first { firstRunNanoseconds = max(1, Int(clip.nanoseconds)) }
        guard timed else { return }
        latencyNanoseconds.append(max(1, Int(clip.nanoseconds)))
        if let first = clip.firstFrameNanoseconds { firstFrameNanoseconds.append(max(1, Int(first))) }
    }
}

/// A bundle's golden latents of one shape, and the frames that they are to become.
public struct GoldenClip: Sendable {
    public let latents: StreamFrames
    private let method: String?
    private let output: Manifest.TensorSpec
    private let wanted: [Float]

    /// Throws `BundleError` for golden tensors that are not sound, and for a shape that the bundle does not have.
    public init(_ bundle: ModelBundle, _ method: String?) throws {
        let tensors = try bundle.golden(method: method)
        let suffix = method.map { ".\($0)" } ?? ""
        let input = "input.\(bundle.manifest.inputs[0].name)\(suffix)"
        output = bundle.manifest.outputs[0]
        self.method = method
        wanted = tensors.floats("output.\(output.name)\(suffix)") ?? []
        latents = try StreamFrames(clip: tensors.floats(input) ?? [], shape: tensors.shapes[input] ?? [])
    }

    /// How far decoded frames (T, C, H, W) are from the golden ones. Throws `.tensors` for another number of them.
    public func parity(_ frames: StreamFrames) throws -> Parity {
        try Parity(of: frames.clip, against: wanted, name: output.name, method: method, range: output.range)
    }
}
