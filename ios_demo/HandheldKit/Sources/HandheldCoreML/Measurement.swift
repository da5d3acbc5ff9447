#if canImport(CoreML)
    import CoreML
    import Foundation
    import HandheldKit

    /// Measures a bundle's Core ML artefact on this device, as `handheld profile` measures one on a host.
    public struct Measurement: Sendable {
        public var runs = 20
        public var warmup = 2
        public var rounds = 3
        public var cooldownNanoseconds: UInt64 = 5_000_000_000
        public var computeUnits = MLComputeUnits.all

        public init() {}

        /// What a person may watch while it runs.
        public struct Run: Sendable {
            public let frames: [Float]
            public let shape: [Int]
            public let nanoseconds: Int64
        }

        /// Runs the golden latents through the artefact and gives the profile. Cancelling the task ends it after the run
        /// under way; what was measured by then is kept, with the reason as the subject's error.
        ///
        /// Throws `BundleError` for a bundle that is not sound; what fails later becomes the subject's error.
        public func profile(
            _ bundle: ModelBundle, _ artifact: Manifest.Artifact, onRun: @Sendable @MainActor (Run) -> Void
        ) async throws -> Profile {
            try bundle.check(artifact)
            let input = bundle.manifest.inputs[0], output = bundle.manifest.outputs[0]
            let golden = try bundle.golden()
            let latents = golden.floats("input.\(input.name)") ?? []
            let wanted = golden.floats("output.\(output.name)") ?? []
            var subject = Profile.Subject(label: "\(artifact.name), \(computeUnits.profileName)", bundle: 0, artifact)
            subject.unitsAsked = computeUnits.profileName
            subject.runtimeVersion = ProcessInfo.processInfo.operatingSystemVersionString
            do {
                for index in 0..<rounds {
                    if index > 0 { try await Task.sleep(nanoseconds: cooldownNanoseconds) }
                    var round = Profile.Round(before: await DeviceState.now, after: DeviceState())
                    round.baselineBytes = footprintBytes().map { Int($0) }
                    let peakBefore = peakFootprintBytes()
                    let decoder = try await VideoDecoder(bundle, artifact, computeUnits: computeUnits)
                    round.loadNanoseconds = Int(decoder.loadNanoseconds)
                    subject.unitsObserved = decoder.plannedDevices
                    for run in 0..<1 + warmup + runs {
                        try Task.checkCancellation()
                        let (frames, nanoseconds) = try await decoder.decode(latents, shape: input.shape)
                        if run == 0 { round.firstRunNanoseconds = Int(nanoseconds) }
                        if run > warmup { round.latencyNanoseconds.append(Int(nanoseconds)) }
                        if subject.parity == nil {
                            subject.parity = [
                                try Parity(of: frames, against: wanted, name: output.name, range: output.range)
                            ]
                        }
                        await onRun(Run(frames: frames, shape: output.shape, nanoseconds: nanoseconds))
                    }
                    // The system's peak is of the process' whole life: it tells this round's only where it grew.
                    if let before = peakBefore, let after = peakFootprintBytes(), after > before {
                        round.peakBytes = Int(after)
                    }
                    round.after = await DeviceState.now
                    subject.rounds.append(round)
                }
            } catch {
                subject.error = "\(error)"
            }
            return Profile(
                createdUTC: Profile.timestamp, software: Profile.software,
                settings: Profile.Settings(
                    runs: runs, warmup: warmup, rounds: rounds, cooldownNanoseconds: Int(cooldownNanoseconds)),
                device: await Profile.Device.this, bundles: [Profile.Origin(bundle.manifest)], subjects: [subject])
        }
    }
#endif
