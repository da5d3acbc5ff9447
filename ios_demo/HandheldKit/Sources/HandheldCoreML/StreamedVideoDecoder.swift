#if canImport(CoreML)
    import CoreML
    import Foundation
    import HandheldKit

    /// A bundle's streamed Core ML artefact: clips of any number of frames, in memory that does not grow with them.
    ///
    /// One clip at a time: beginning one ends the one before. What `StreamDecoder` says of a clip holds.
    public final class StreamedVideoDecoder: ClipDecoder {
        public let artifact: Manifest.Artifact
        public let loadNanoseconds: Int64
        private let programs: Programs
        private let decoder: StreamDecoder<CoreMLProgram>

        /// Checks the artefact's hash, compiles its programs (once: the results are kept in the caches folder) and, where
        /// they run in one pass, loads them; of a plan of several, each pass loads its own when it begins.
        ///
        /// Throws `BundleError` for an artefact that is not what the manifest says, or whose tensors this device has no
        /// memory for, and Core ML's own errors.
        public init(_ bundle: ModelBundle, _ artifact: Manifest.Artifact, computeUnits: MLComputeUnits = .all) async throws {
            guard artifact.runtime == .coreml, let plan = artifact.stream else {
                throw BundleError(.malformed, "\(artifact.name) is not a streamed Core ML artefact.")
            }
            try artifact.checkSystem()
            try bundle.check(artifact)
            let programs = Programs(bundle, artifact, computeUnits)
            for segment in plan.passes.flatMap(\.segments) { _ = try await programs.compiled(segment) }
            decoder = try StreamDecoder(plan, dtype: artifact.inputDType) { try await programs.load($0) }
            let start = monotonicNanoseconds()
            try await decoder.prepare()
            loadNanoseconds = monotonicNanoseconds() - start
            self.artifact = artifact
            self.programs = programs
        }

        public func measure(_ latents: StreamFrames) async throws -> ClipTimes {
            try await decoder.measure(latents)
        }

        public func frames(of latents: StreamFrames) async throws -> AsyncThrowingStream<StreamFrames, Error> {
            await decoder.frames(of: latents)
        }

        /// Frames of latents that come live; see `StreamDecoder.frames(from:)`.
        public func frames<Latents: AsyncSequence & Sendable>(
            from latents: Latents
        ) async -> AsyncThrowingStream<StreamFrames, Error> where Latents.Element == StreamFrames {
            await decoder.frames(from: latents)
        }

        /// Ends the clip under way and lets go of the programs.
        public func release() async {
            await decoder.release()
        }

        /// Of all programs together.
        public func plannedUnits() async throws -> [String: Int]? {
            var total: [String: Int]?
            for segment in artifact.stream?.passes.flatMap(\.segments) ?? [] {
                guard let units = try await plannedDevices(try await programs.compiled(segment), programs.configuration)
                else { return nil }
                total = (total ?? [:]).merging(units, uniquingKeysWith: +)
            }
            return total
        }

        private struct Programs: @unchecked Sendable {
            let bundle: ModelBundle
            let artifact: Manifest.Artifact
            let configuration = MLModelConfiguration()

            init(_ bundle: ModelBundle, _ artifact: Manifest.Artifact, _ computeUnits: MLComputeUnits) {
                self.bundle = bundle
                self.artifact = artifact
                configuration.computeUnits = computeUnits
            }

            func compiled(_ segment: StreamPlan.Segment) async throws -> URL {
                try await compiledModel(try bundle.locate("\(artifact.path)/\(segment.program)"), artifact, segment.program)
            }

            func load(_ segment: StreamPlan.Segment) async throws -> CoreMLProgram {
                try await CoreMLProgram(segment, try await compiled(segment), configuration, artifact.inputDType)
            }
        }
    }
#endif
