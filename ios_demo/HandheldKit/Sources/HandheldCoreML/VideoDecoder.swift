#if canImport(CoreML)
    import CoreML
    import Foundation
    import HandheldKit

    /// A bundle's Core ML artefact of whole clips or of images, loaded: latents in, frames out; an image is one frame.
    ///
    /// One prediction runs at a time; the type is an actor so that an app's main thread never waits for one.
    public actor VideoDecoder: ClipDecoder {
        public nonisolated let artifact: Manifest.Artifact
        /// What loading took, the compilation of the package excluded, in nanoseconds.
        public nonisolated let loadNanoseconds: Int64
        private let model: MLModel
        private let configuration: MLModelConfiguration
        private let compiled: URL
        private let inputName: String
        private let output: Manifest.TensorSpec
        private let method: Manifest.Method

        /// Checks the artefact's hash, compiles its package (once: the result is kept in the caches folder under its hash)
        /// and loads it. Throws `BundleError` for a package that is not what the manifest says, and Core ML's own errors.
        ///
        /// - Parameters:
        ///   - method: one of the artefact's, the first where nil; a package of several shapes holds one function each.
        ///   - computeUnits: where Core ML may run it; `plannedUnits` tells what it makes of that.
        public init(
            _ bundle: ModelBundle, _ artifact: Manifest.Artifact, method: String? = nil,
            computeUnits: MLComputeUnits = .all
        ) async throws {
            guard artifact.runtime == .coreml else {
                throw BundleError(.malformed, "\(artifact.name) is for \(artifact.runtime.rawValue), not for Core ML.")
            }
            guard artifact.stream == nil else {
                throw BundleError(.malformed, "\(artifact.name) is streamed: StreamedVideoDecoder runs it.")
            }
            guard let used = method.map({ name in artifact.methods.first { $0.name == name } }) ?? artifact.methods[0] else {
                throw BundleError(.malformed, "\(artifact.name) has no shape \(method ?? "").")
            }
            try artifact.checkSystem()
            _ = try artifact.floatOutput()
            try bundle.check(artifact)
            let configuration = MLModelConfiguration()
            configuration.computeUnits = computeUnits
            if artifact.methods.count > 1 {
                guard #available(iOS 18.0, macOS 15.0, *) else {
                    throw BundleError(.version, "\(artifact.name) holds several shapes, which needs iOS 18.")
                }
                configuration.functionName = used.name
            }
            compiled = try await compiledModel(try bundle.locate(artifact.path), artifact, nil)
            let start = monotonicNanoseconds()
            model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
            loadNanoseconds = monotonicNanoseconds() - start
            self.artifact = artifact
            self.configuration = configuration
            inputName = bundle.manifest.inputs[0].name
            output = bundle.manifest.outputs[0]
            self.method = used
        }

        /// Runs the model once; what it takes is that of the prediction.
        public func measure(_ latents: StreamFrames) throws -> ClipTimes {
            try predicted(latents) { _, nanoseconds in
                ClipTimes(frames: output.frames(method.outputs[0]), nanoseconds: nanoseconds, firstFrameNanoseconds: nil)
            }
        }

        public func frames(of latents: StreamFrames) -> AsyncThrowingStream<StreamFrames, Error> {
            let once = Once()
            return AsyncThrowingStream { once.isFirst() ? try await self.clip(latents) : nil }
        }

        private func clip(_ latents: StreamFrames) throws -> StreamFrames {
            try predicted(latents) { array, _ in
                try StreamFrames(clip: try array.floats(), shape: array.shape.map(\.intValue))
            }
        }

        /// Runs the model and gives its output, which is gone after `body`, to it.
        private func predicted<R>(_ latents: StreamFrames, _ body: (MLMultiArray, Int64) throws -> R) throws -> R {
            let shape = method.inputs[0]
            let given = latents.clipShape(rank: shape.count)
            guard given == shape else {
                throw BundleError(
                    .tensors, "Latents are \(given); this model takes \(shape) only. Another length is another shape of the "
                        + "export, or a streamed one.")
            }
            return try autoreleasepool {
                let input = try MLMultiArray(latents.clip, shape: shape, dtype: artifact.inputDType)
                let features = try MLDictionaryFeatureProvider(dictionary: [inputName: MLFeatureValue(multiArray: input)])
                let (result, nanoseconds) = try timed { try model.prediction(from: features) }
                guard let frames = result.featureValue(for: output.name)?.multiArrayValue, frames.shape.map(\.intValue) == method.outputs[0]
                else {
                    throw BundleError(.tensors, "\(artifact.name) gave no \"\(output.name)\". Export the bundle again.")
                }
                return try body(frames, nanoseconds)
            }
        }

        /// Operations by the device that Core ML plans to run them on; nil where the system does not tell.
        public func plannedUnits() async throws -> [String: Int]? {
            try await plannedDevices(compiled, configuration)
        }
    }

    /// Asked by one task at a time.
    private final class Once: @unchecked Sendable {
        private var wasAsked = false

        func isFirst() -> Bool {
            defer { wasAsked = true }
            return !wasAsked
        }
    }
#endif
