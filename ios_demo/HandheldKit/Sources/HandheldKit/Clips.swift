import Foundation

/// Where latents come from: the bundle's golden tensors, or a file that `handheld encode` wrote.
public enum ClipSource: Hashable, Sendable {
    /// Of a shape, or of a length of a streamed artefact's; nil is the first.
    case golden(String?)
    case file(URL)
}

extension ModelBundle {
    /// The latents (T', C, H', W') of a clip or an image, as the model takes them. Throws `BundleError` for files that are
    /// not sound, and latents that the bundle does not say how to convert.
    ///
    /// - Parameter kind: what a person says of a file's latents; nil is what the file says. Where that is silent too, they
    ///   are what the model takes.
    public func latents(_ source: ClipSource, kind: LatentKind? = nil) throws -> StreamFrames {
        switch source {
        case .golden(let method): return try GoldenClip(self, method).latents
        case .file(let url):
            let file = try LatentsFile(contentsOf: url)
            let spec = manifest.inputs[0]
            return try spec.taken(file.latents, given: try file.kind(said: kind) ?? spec.latentKind)
        }
    }
}

extension Manifest.Artifact {
    /// The shape in which it takes latents (T', C, H', W'), nil being the first. Throws `.tensors` where it takes none.
    public func shape(for latents: StreamFrames) throws -> String? {
        let given = latents.clipShape(rank: methods[0].inputs[0].count)
        let fits = methods.firstIndex { method in
            let wanted = method.inputs[0]
            return wanted == given || (stream != nil && wanted[1] == given[1] && wanted[3...] == given[3...])
        }
        guard let fits else {
            let taken = methods.map { "\($0.inputs[0])" }.joined(separator: " or ")
            throw BundleError(
                .tensors, "Latents are \(given); \(name) takes \(taken)\(stream == nil ? "" : ", of any length"). Encode the "
                    + "clip or image for this bundle, or export the model in this shape.")
        }
        return fits == 0 || stream != nil ? nil : methods[fits].name
    }
}
