#if canImport(CoreML)
    import CoreML
    import Foundation
    import HandheldKit

    /// An artefact's package, or one of a streamed artefact's, compiled. Done once: the result stays in the caches folder.
    func compiledModel(_ package: URL, _ artifact: Manifest.Artifact, _ program: String?) async throws -> URL {
        try await CompiledModels.caches.url(sha256: artifact.sha256, program: program) {
            try await MLModel.compileModel(at: package)
        }
    }

    /// Opens a Core ML artefact, streamed or not, as `ClipMeasurement` takes it.
    ///
    /// - Parameter latents: the kind that it will be given, converted where the model takes the other; nil is what the
    ///   model takes.
    public func openDecoder(
        _ bundle: ModelBundle, _ artifact: Manifest.Artifact, method: String?, computeUnits: MLComputeUnits,
        latents: LatentKind? = nil
    ) async throws -> any ClipDecoder {
        let decoder: any ClipDecoder = artifact.stream != nil
            ? try await StreamedVideoDecoder(bundle, artifact, computeUnits: computeUnits)
            : try await VideoDecoder(bundle, artifact, method: method, computeUnits: computeUnits)
        return decoder.given(latents, bundle.manifest.inputs[0])
    }
#endif
