#if canImport(CoreAI)
    import CoreAI
    import Foundation
    import HandheldKit

    /// A bundle's streamed Core AI artefact: clips of any number of frames, in memory that does not grow with them.
    ///
    /// One clip at a time: beginning one ends the one before. What `StreamDecoder` says of a clip holds.
    @available(iOS 27.0, macOS 27.0, *)
    public final class CoreAIStreamedVideoDecoder: ClipDecoder {
        public let artifact: Manifest.Artifact
        public let loadNanoseconds: Int64
        private let decoder: StreamDecoder<CoreAIProgram>

        /// Checks the artefact's hash and, where its programs run in one pass, loads them; of a plan of several, each pass
        /// loads its own when it begins. Throws as `CoreAIVideoDecoder` does.
        public init(_ bundle: ModelBundle, _ artifact: Manifest.Artifact, units: CoreAIUnits = .all) async throws {
            guard artifact.runtime == .coreai, let plan = artifact.stream else {
                throw BundleError(.malformed, "\(artifact.name) is not a streamed Core AI artefact.")
            }
            try artifact.checkSystem()
            try bundle.check(artifact)
            decoder = try StreamDecoder(plan, dtype: artifact.inputDType) { segment in
                let asset = try bundle.locate("\(artifact.path)/\(segment.program)")
                return try CoreAIProgram(
                    segment, try await loadedFunction(asset, artifact.methods[0].name, units), artifact.inputDType)
            }
            let start = monotonicNanoseconds()
            try await decoder.prepare()
            loadNanoseconds = monotonicNanoseconds() - start
            self.artifact = artifact
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

        /// Core AI does not tell.
        public func plannedUnits() -> [String: Int]? { nil }
    }

    /// A segment of a streamed artefact as Core AI has it. Tensors are copied both ways.
    @available(iOS 27.0, macOS 27.0, *)
    struct CoreAIProgram: StreamProgram {
        private let segment: StreamPlan.Segment
        private let function: InferenceFunction

        /// Throws `.tensors` for a program with other tensors than the plan has.
        init(_ segment: StreamPlan.Segment, _ function: InferenceFunction, _ dtype: Manifest.DType) throws {
            self.segment = segment
            self.function = function
            let descriptor = function.descriptor
            let faults = segment.faults(
                inputs: Self.tensors(descriptor.inputNames, descriptor.inputDescriptor(of:)),
                outputs: Self.tensors(descriptor.outputNames, descriptor.outputDescriptor(of:)), dtype)
            guard faults.isEmpty else {
                throw BundleError(
                    .tensors, "\(segment.program) is not what the plan says: \(faults.joined(separator: "; ")). Export again.")
            }
        }

        func call(_ inputs: [StreamTensor], _ outputs: [StreamTensor]) throws {
            var given: [String: NDArray] = [:]
            for (name, (shape, tensor)) in zip(segment.inputNames, zip(segment.inputShapes, inputs)) {
                given[name] = try NDArray(tensor, shape: shape)
            }
            let arrays = given
            let names = segment.outputNames
            let made = try finished { [function] in
                var outputs = try await function.run(inputs: arrays)
                return names.map { outputs.remove($0)?.ndArray }
            }
            for ((name, array), tensor) in zip(zip(names, made), outputs) {
                guard let array else {
                    throw BundleError(.tensors, "\(segment.program) gave no \"\(name)\". Export the bundle again.")
                }
                try array.copy(to: tensor)
            }
        }

        private static func tensors(
            _ names: [String], _ descriptor: (String) -> NDArrayDescriptor?
        ) -> [String: DeclaredTensor] {
            var tensors: [String: DeclaredTensor] = [:]
            for name in names {
                let found = descriptor(name)
                let shape = found?.shape.compactMap { $0 } ?? []
                let dtype = [Manifest.DType.float32, .float16].first { $0.coreAI == found?.scalarType }
                tensors[name] = DeclaredTensor(shape: shape.count == found?.shape.count ? shape : [], dtype: dtype)
            }
            return tensors
        }
    }

    /// What an asynchronous call gives, waited for on this thread.
    ///
    /// `StreamDecoder` calls one program at a time and waits in it, as it waits for Core ML. Here another thread of the
    /// pool has the work meanwhile.
    private func finished<R: Sendable>(_ body: @escaping @Sendable () async throws -> R) throws -> R {
        let outcome = Outcome<R>()
        let done = DispatchSemaphore(value: 0)
        Task.detached {
            do {
                outcome.result = .success(try await body())
            } catch {
                outcome.result = .failure(error)
            }
            done.signal()
        }
        done.wait()
        return try outcome.result!.get()
    }

    /// Written by one thread before the semaphore, read by another behind it.
    private final class Outcome<R: Sendable>: @unchecked Sendable {
        var result: Result<R, Error>?
    }
#endif
