#if canImport(CoreAI)
    import CoreAI
    import Foundation
    import HandheldKit

    /// Opens a Core AI artefact, streamed or not, as `ClipMeasurement` takes it.
    @available(iOS 27.0, macOS 27.0, *)
    public func openCoreAIDecoder(
        _ bundle: ModelBundle, _ artifact: Manifest.Artifact, method: String?, units: CoreAIUnits
    ) async throws -> any ClipDecoder {
        if artifact.stream != nil { return try await CoreAIStreamedVideoDecoder(bundle, artifact, units: units) }
        return try await CoreAIVideoDecoder(bundle, artifact, method: method, units: units)
    }

    /// A bundle's Core AI artefact of whole clips, loaded: latents in, frames out.
    @available(iOS 27.0, macOS 27.0, *)
    public actor CoreAIVideoDecoder: ClipDecoder {
        public nonisolated let artifact: Manifest.Artifact
        /// What loading took, in nanoseconds. The first time it holds the specialisation for this device, which the system
        /// keeps.
        public nonisolated let loadNanoseconds: Int64
        private let function: InferenceFunction
        private let inputName: String
        private let outputName: String
        private let method: Manifest.Method

        /// Checks the artefact's hash and loads one of its functions.
        ///
        /// - Parameters:
        ///   - method: one of the artefact's, the first where nil; each shape is a function of the asset.
        ///   - units: what Core AI is asked to run it on.
        ///
        /// Throws `BundleError` for an asset that is not what the manifest says, and Core AI's own errors.
        public init(
            _ bundle: ModelBundle, _ artifact: Manifest.Artifact, method: String? = nil, units: CoreAIUnits = .all
        ) async throws {
            guard artifact.runtime == .coreai, artifact.stream == nil else {
                throw BundleError(.malformed, "\(artifact.name) is not a Core AI artefact of whole clips.")
            }
            guard let used = method.map({ name in artifact.methods.first { $0.name == name } }) ?? artifact.methods[0] else {
                throw BundleError(.malformed, "\(artifact.name) has no shape \(method ?? "").")
            }
            try artifact.checkSystem()
            try bundle.check(artifact)
            let start = monotonicNanoseconds()
            function = try await loadedFunction(try bundle.locate(artifact.path), used.name, units)
            loadNanoseconds = monotonicNanoseconds() - start
            self.artifact = artifact
            self.method = used
            inputName = bundle.manifest.inputs[0].name
            outputName = bundle.manifest.outputs[0].name
        }

        /// Runs the function once; what it takes is that of the run, without the copies at both ends.
        public func measure(_ latents: StreamFrames) async throws -> ClipTimes {
            let (tensor, nanoseconds) = try await predicted(latents)
            return ClipTimes(frames: tensor.shape[0], nanoseconds: nanoseconds, firstFrameNanoseconds: nil)
        }

        public func frames(of latents: StreamFrames) -> AsyncThrowingStream<StreamFrames, Error> {
            var isFirst = true
            return AsyncThrowingStream {
                guard isFirst else { return nil }
                isFirst = false
                return try await self.clip(latents)
            }
        }

        /// Core AI does not tell.
        public func plannedUnits() -> [String: Int]? { nil }

        private func clip(_ latents: StreamFrames) async throws -> StreamFrames {
            try StreamFrames(clip: try await predicted(latents).0.floats(), shape: method.outputs[0])
        }

        /// The clip (1, C, T, H, W) as a tensor of (T, C, H, W) in name only: its values are in the clip's order.
        private func predicted(_ latents: StreamFrames) async throws -> (StreamTensor, Int64) {
            let given = [1, latents.shape[1], latents.count, latents.shape[2], latents.shape[3]]
            guard given == method.inputs[0] else {
                throw BundleError(
                    .tensors, "Latents are \(given); this model takes \(method.inputs[0]) only. Another length is another "
                        + "shape of the export, or a streamed one.")
            }
            let input = try StreamTensor([given[2], given[1], given[3], given[4]], artifact.inputDType)
            input.fill(latents.clip)
            let array = try NDArray(input, shape: given)
            let start = monotonicNanoseconds()
            var outputs = try await function.run(inputs: [inputName: array])
            let nanoseconds = monotonicNanoseconds() - start
            let shape = method.outputs[0]
            guard let frames = outputs.remove(outputName)?.ndArray, frames.shape == shape else {
                throw BundleError(.tensors, "\(artifact.name) gave no clip \"\(outputName)\". Export the bundle again.")
            }
            let output = try StreamTensor([shape[2], shape[1], shape[3], shape[4]], artifact.outputDType)
            try frames.copy(to: output)
            return (output, nanoseconds)
        }
    }

    /// A function of an asset. Throws `.tensors` where the asset has none of that name.
    @available(iOS 27.0, macOS 27.0, *)
    func loadedFunction(_ asset: URL, _ name: String, _ units: CoreAIUnits) async throws -> InferenceFunction {
        let model = try await AIModel(contentsOf: asset, options: units.options)
        guard let function = try model.loadFunction(named: name) else {
            throw BundleError(.tensors, "\(asset.lastPathComponent) has no function \(name). Export the bundle again.")
        }
        return function
    }
#endif
