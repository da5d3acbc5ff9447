#if canImport(CoreML)
    import CoreML
    import Foundation
    import HandheldKit

    /// A bundle's Core ML artefact, loaded: latents in, frames out.
    ///
    /// One prediction runs at a time; the type is an actor so that an app's main thread never waits for one.
    public actor VideoDecoder {
        public let artifact: Manifest.Artifact
        /// What loading took, the compilation of the package excluded, in nanoseconds.
        public let loadNanoseconds: Int64
        /// Operations by the device that Core ML plans to run them on; nil where the system does not tell.
        public let plannedDevices: [String: Int]?
        private let model: MLModel
        private let inputName: String
        private let outputName: String

        /// Checks the artefact's hash, compiles its package (once: the result is kept in the caches folder under its hash)
        /// and loads it. Throws `BundleError` for a package that is not what the manifest says, and Core ML's own errors.
        ///
        /// - Parameters:
        ///   - method: one of the artefact's, the first where nil; a package of several shapes holds one function each.
        ///   - computeUnits: where Core ML may run it; `plannedDevices` tells what it makes of that.
        public init(
            _ bundle: ModelBundle, _ artifact: Manifest.Artifact, method: String? = nil,
            computeUnits: MLComputeUnits = .all
        ) async throws {
            guard artifact.runtime == .coreml else {
                throw BundleError(.malformed, "\(artifact.name) is for \(artifact.runtime.rawValue), not for Core ML.")
            }
            guard artifact.stream == nil else {
                throw BundleError(
                    .malformed, "\(artifact.name) is streamed, which this class does not run. Export it without --stream.")
            }
            try bundle.check(artifact)
            let configuration = MLModelConfiguration()
            configuration.computeUnits = computeUnits
            if artifact.methods.count > 1 {
                guard #available(iOS 18.0, macOS 15.0, *) else {
                    throw BundleError(.version, "\(artifact.name) holds several shapes, which needs iOS 18.")
                }
                configuration.functionName = method ?? artifact.methods[0].name
            }
            let compiled = try await Self.compiled(try bundle.locate(artifact.path), artifact.sha256)
            let start = monotonicNanoseconds()
            model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
            loadNanoseconds = monotonicNanoseconds() - start
            plannedDevices = try await HandheldCoreML.plannedDevices(compiled, configuration)
            self.artifact = artifact
            inputName = bundle.manifest.inputs[0].name
            outputName = bundle.manifest.outputs[0].name
        }

        /// Runs the model once. `latents` are row-major in the method's input shape; throws `.tensors` for another number.
        public func decode(_ latents: [Float], shape: [Int]) throws -> (frames: [Float], nanoseconds: Int64) {
            let input = try MLMultiArray(latents, shape: shape, dtype: artifact.inputDType)
            let features = try MLDictionaryFeatureProvider(dictionary: [inputName: MLFeatureValue(multiArray: input)])
            let (result, nanoseconds) = try timed { try model.prediction(from: features) }
            guard let output = result.featureValue(for: outputName)?.multiArrayValue else {
                throw BundleError(.tensors, "\(artifact.name) gave no output \"\(outputName)\". Export the bundle again.")
            }
            return (output.floats(), nanoseconds)
        }

        private static func compiled(_ package: URL, _ sha256: String) async throws -> URL {
            let manager = FileManager.default
            let caches = try manager.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
            let kept = caches.appendingPathComponent("handheld-\(sha256).mlmodelc")
            if manager.fileExists(atPath: kept.path) { return kept }
            let fresh = try await MLModel.compileModel(at: package)
            // A rename is atomic: whoever finds the folder finds it whole. Another task may have been first.
            do {
                try manager.moveItem(at: fresh, to: kept)
            } catch where manager.fileExists(atPath: kept.path) {
                try? manager.removeItem(at: fresh)
            }
            return kept
        }
    }
#endif
