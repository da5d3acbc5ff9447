import Foundation

/// Whose latents they are.
public enum LatentKind: String, CaseIterable, Hashable, Sendable {
    /// As a VAE's encoder emits them.
    case plain
    /// As a diffusion model takes and gives them.
    case normalised
}

extension Manifest.Statistics {
    /// Plain latents (N, C, ...), row-major, as a diffusion model takes and gives them; fp32, as `handheld` computes it.
    /// Throws `.tensors` for another number of channels.
    public func normalise(_ latents: [Float], shape: [Int]) throws -> [Float] {
        let factor = Float(scaling)
        return try perChannel(latents, shape) { ($0 - $1) / $2 * factor }
    }

    /// A diffusion model's latents (N, C, ...), row-major, as a VAE's encoder emits them; fp32, as `handheld` computes it.
    /// Throws `.tensors` for another number of channels.
    public func denormalise(_ latents: [Float], shape: [Int]) throws -> [Float] {
        let factor = Float(scaling)
        return try perChannel(latents, shape) { $0 / factor * $2 + $1 }
    }

    /// `compute` of each value, its channel's mean and its standard deviation.
    private func perChannel(
        _ latents: [Float], _ shape: [Int], _ compute: (Float, Float, Float) -> Float
    ) throws -> [Float] {
        let channels = shape.count > 1 ? shape[1] : 0
        guard [mean.count, std.count].allSatisfy({ $0 == 1 || $0 == channels }), product(shape) == latents.count else {
            throw BundleError(
                .tensors,
                "Latents are \(latents.count) values of shape \(shape); the statistics are for "
                    + "\(max(mean.count, std.count)) channels. Give latents (N, C, ...) of this bundle.")
        }
        let plane = shape[2...].reduce(1, *)
        var converted: [Float] = []
        converted.reserveCapacity(latents.count)
        for row in 0..<shape[0] * channels {
            let channel = row % channels
            let center = Float(mean[mean.count == 1 ? 0 : channel]), width = Float(std[std.count == 1 ? 0 : channel])
            for value in latents[row * plane..<(row + 1) * plane] { converted.append(compute(value, center, width)) }
        }
        return converted
    }
}

extension Manifest.TensorSpec {
    /// The kind of latents that the model takes.
    public var latentKind: LatentKind { normalised ? .normalised : .plain }

    /// Latents (T', C, H', W') as the model takes them. Throws `.tensors` where they must be converted and the bundle does
    /// not say how, and for another number of channels.
    ///
    /// - Parameter given: the kind that they are of.
    public func taken(_ latents: StreamFrames, given: LatentKind) throws -> StreamFrames {
        guard given != latentKind else { return latents }
        guard let statistics else {
            throw BundleError(
                .tensors,
                "The latents are \(given.rawValue), this model takes \(latentKind.rawValue) ones, and the bundle has no "
                    + "statistics by which one becomes the other. Give latents as it takes them.")
        }
        let values = try given == .normalised
            ? statistics.denormalise(latents.values, shape: latents.shape)
            : statistics.normalise(latents.values, shape: latents.shape)
        return StreamFrames(values, shape: latents.shape)
    }
}

/// A decoder that is given latents of one kind by its caller, and gives them to another decoder as that takes them.
public struct ConvertingDecoder: ClipDecoder {
    private let decoder: any ClipDecoder
    private let spec: Manifest.TensorSpec
    private let given: LatentKind

    /// - Parameters:
    ///   - spec: of the latents that `decoder` takes.
    ///   - given: the kind of those that this one is given.
    public init(_ decoder: any ClipDecoder, _ spec: Manifest.TensorSpec, given: LatentKind) {
        self.decoder = decoder
        self.spec = spec
        self.given = given
    }

    public var loadNanoseconds: Int64 { decoder.loadNanoseconds }

    public func plannedUnits() async throws -> [String: Int]? { try await decoder.plannedUnits() }

    public func frames(of latents: StreamFrames) async throws -> AsyncThrowingStream<StreamFrames, Error> {
        try await decoder.frames(of: try spec.taken(latents, given: given))
    }

    /// The conversion is not measured.
    public func measure(_ latents: StreamFrames) async throws -> ClipTimes {
        try await decoder.measure(try spec.taken(latents, given: given))
    }
}

extension ClipDecoder {
    /// This decoder for latents of a kind; nil is the kind that it takes.
    public func given(_ kind: LatentKind?, _ spec: Manifest.TensorSpec) -> any ClipDecoder {
        guard let kind, kind != spec.latentKind else { return self }
        return ConvertingDecoder(self, spec, given: kind)
    }
}

/// A file of latents: the first clip or image of its tensor `latents`, or of its only tensor: (N, C, T', H', W') or
/// (N, C, H', W') in fp32, fp16 or bf16.
public struct LatentsFile: Sendable {
    /// (T', C, H', W').
    public let latents: StreamFrames
    /// What its writer says that they are; nil where it does not, as other programs than `handheld` do not.
    public let kind: LatentKind?
    private let name: String

    /// Throws `BundleError(.tensors)` for another file, and values that are not finite; `.missing` for one that cannot be
    /// read.
    public init(contentsOf url: URL) throws {
        name = url.lastPathComponent
        let tensors = try Safetensors(contentsOf: url, name: name)
        let only = tensors.shapes.count == 1 ? tensors.shapes.first?.key : nil
        let tensor = tensors.shapes["latents"] != nil ? "latents" : only ?? "latents"
        guard let shape = tensors.shapes[tensor], let values = tensors.floats(tensor), shape.count == 5 || shape.count == 4,
            !values.isEmpty
        else {
            throw BundleError(
                .tensors, "\(name) holds no \"latents\" of 5 or 4 dimensions. `handheld encode` writes such files.")
        }
        guard values.allSatisfy(\.isFinite) else {
            throw BundleError(.tensors, "\(name) holds NaN or infinity: what made these latents failed.")
        }
        latents = try StreamFrames(clip: Array(values[..<(values.count / shape[0])]), shape: [1] + shape[1...])
        kind = tensors.metadata["normalised"].map { $0 == "yes" ? .normalised : .plain }
    }

    /// The kind that they are of, nil where neither the file nor a person says. Throws `.tensors` where both do and
    /// disagree.
    public func kind(said: LatentKind?) throws -> LatentKind? {
        if let said, let kind, said != kind {
            throw BundleError(
                .tensors,
                "\(name) says that its latents are \(kind.rawValue), and they are to be taken as \(said.rawValue). Take them "
                    + "as the file says.")
        }
        return said ?? kind
    }
}
