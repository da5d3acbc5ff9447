#if canImport(CoreAI)
    import CoreAI
    import Foundation
    import HandheldKit

    /// Opens a Core AI artefact, streamed or not, as `ClipMeasurement` takes it.
    ///
    /// - Parameter latents: the kind that it will be given, converted where the model takes the other; nil is what the
    ///   model takes.
    @available(iOS 27.0, macOS 27.0, *)
    public func openCoreAIDecoder(
        _ bundle: ModelBundle, _ artifact: Manifest.Artifact, method: String?, units: CoreAIUnits,
        latents: LatentKind? = nil
    ) async throws -> any ClipDecoder {
        let decoder: any ClipDecoder = artifact.stream != nil
            ? try await CoreAIStreamedVideoDecoder(bundle, artifact, units: units)
            : try await CoreAIVideoDecoder(bundle, artifact, method: method, units: units)
        return decoder.given(latents, bundle.manifest.inputs[0])
    }

    /// A bundle's Core AI artefact of whole clips or of images, loaded: latents in, frames out; an image is one frame.
    @available(iOS 27.0, macOS 27.0, *)
    public actor CoreAIVideoDecoder: ClipDecoder {
        public nonisolated let artifact: Manifest.Artifact
        /// What loading took, in nanoseconds. The first time it holds the specialisation for this device, which the system
        /// keeps.
        public nonisolated let loadNanoseconds: Int64
        private let function: InferenceFunction
        private let inputName: String
        private let output: Manifest.TensorSpec
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
            _ = try artifact.floatOutput()
            try bundle.check(artifact)
            let start = monotonicNanoseconds()
            function = try await loadedFunction(try bundle.locate(artifact.path), used.name, units)
            loadNanoseconds = monotonicNanoseconds() - start
            self.artifact = artifact
            self.method = used
            inputName = bundle.manifest.inputs[0].name
            output = bundle.manifest.outputs[0]
        }

        /// Runs the function once; what it takes is that of the run, without the copies at both ends.
        public func measure(_ latents: StreamFrames) async throws -> ClipTimes {
            let nanoseconds = try await predicted(latents).1
            return ClipTimes(frames: output.frames(method.outputs[0]), nanoseconds: nanoseconds, firstFrameNanoseconds: nil)
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

        /// The clip (1, C, T, H, W) as a tensor of (T, C, H, W) in name only: its values are in the clip's order. An image
        /// is one frame.
        private func predicted(_ latents: StreamFrames) async throws -> (StreamTensor, Int64) {
            let given = latents.clipShape(rank: method.inputs[0].count)
            guard given == method.inputs[0] else {
                throw BundleError(
                    .tensors, "Latents are \(given); this model takes \(method.inputs[0]) only. Another length is another "
                        + "shape of the export, or a streamed one.")
            }
            let input = try StreamTensor(StreamFrames.shape(ofClip: given), artifact.inputDType)
            input.fill(latents.clip)
            let array = try NDArray(input, shape: given)
            let start = monotonicNanoseconds()
            var outputs = try await function.run(inputs: [inputName: array])
            let nanoseconds = monotonicNanoseconds() - start
            let shape = method.outputs[0]
            guard let frames = outputs.remove(output.name)?.ndArray, frames.shape == shape else {
                throw BundleError(.tensors, "\(artifact.name) gave no \"\(output.name)\". Export the bundle again.")
            }
            let tensor = try StreamTensor(StreamFrames.shape(ofClip: shape), try artifact.floatOutput())
            try frames.copy(to: tensor)
            return (tensor, nanoseconds)
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
