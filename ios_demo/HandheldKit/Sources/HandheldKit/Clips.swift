import Foundation

/// Where latents come from: the bundle's golden tensors, or a file that `handheld encode` wrote.
public enum ClipSource: Hashable, Sendable {
    /// Of a shape, or of a length of a streamed artefact's; nil is the first.
    case golden(String?)
    case file(URL)
}

extension ModelBundle {
    /// The latents (T', C, H', W') of a clip. Throws `BundleError` for files that are not sound.
    public func latents(_ source: ClipSource) throws -> StreamFrames {
        switch source {
        case .golden(let method): return try GoldenClip(self, method).latents
        case .file(let url): return try StreamFrames(latentsIn: url)
        }
    }
}

extension StreamFrames {
    /// The first clip of a file of latents: safetensors with a tensor `latents` (N, C, T', H', W'), fp32.
    /// Throws `BundleError(.tensors)` for another file, `.missing` for one that cannot be read.
    public init(latentsIn url: URL) throws {
        let name = url.lastPathComponent
        let tensors = try Safetensors(contentsOf: url, name: name)
        guard let shape = tensors.shapes["latents"], let values = tensors.floats("latents"), shape.count == 5,
            !values.isEmpty
        else {
            throw BundleError(.tensors, "\(name) holds no \"latents\" of 5 dimensions. `handheld encode` writes such files.")
        }
        let size = values.count / shape[0]
        try self.init(clip: Array(values[..<size]), shape: [1] + shape[1...])
    }
}

extension Manifest.Artifact {
    /// The shape in which it takes latents (T', C, H', W'), nil being the first. Throws `.tensors` where it takes none.
    public func shape(for latents: StreamFrames) throws -> String? {
        let given = [1, latents.shape[1], latents.count, latents.shape[2], latents.shape[3]]
        let fits = methods.firstIndex { method in
            let wanted = method.inputs[0]
            return wanted == given || (stream != nil && wanted[1] == given[1] && wanted[3...] == given[3...])
        }
        guard let fits else {
            let taken = methods.map { "\($0.inputs[0])" }.joined(separator: " or ")
            throw BundleError(
                .tensors, "Latents are \(given); \(name) takes \(taken)\(stream == nil ? "" : ", of any length"). Encode the "
                    + "clip for this bundle, or export the model in this shape.")
        }
        return fits == 0 || stream != nil ? nil : methods[fits].name
    }
}
