/// Frames of a clip in order, contiguous: (count, channels, height, width). Latents as well as RGB frames.
public struct StreamFrames: Equatable, Sendable {
    public let values: [Float]
    public let shape: [Int]

    public var count: Int { shape[0] }

    public init(_ values: [Float], shape: [Int]) {
        precondition(shape.count == 4 && shape.reduce(1, *) == values.count)
        self.values = values
        self.shape = shape
    }

    /// From values (1, C, T, H, W), as golden tensors and files of latents have them, or from an image's, (1, C, H, W),
    /// which is one frame. Throws `.tensors` for others.
    public init(clip values: [Float], shape: [Int]) throws {
        guard shape.count == 5 || shape.count == 4, shape[0] == 1, product(shape) == values.count else {
            throw BundleError(
                .tensors,
                "\(values.count) values of shape \(shape) are no clip, (1, C, T, H, W), and no image, (1, C, H, W).")
        }
        let frames = Self.shape(ofClip: shape)
        self.init(swapped(values, frames[1], frames[0], frames[2] * frames[3]), shape: frames)
    }

    /// The values as (1, C, T, H, W); of one frame also as (1, C, H, W).
    public var clip: [Float] { swapped(values, shape[0], shape[1], shape[2] * shape[3]) }

    /// What a model calls these frames that takes clips (1, C, T, H, W), `rank` being 5, or images (1, C, H, W), it being
    /// 4. Several frames are no image: they keep their time.
    public func clipShape(rank: Int) -> [Int] {
        rank == 4 && count == 1 ? [1, shape[1], shape[2], shape[3]] : [1, shape[1], count, shape[2], shape[3]]
    }

    /// (count, C, H, W) of a model's (1, C, T, H, W) or (1, C, H, W).
    public static func shape(ofClip shape: [Int]) -> [Int] {
        shape.count == 4 ? shape : [shape[2], shape[1], shape[3], shape[4]]
    }

    /// The frames of several pieces as one. Nil for none.
    public static func joined(_ pieces: [StreamFrames]) -> StreamFrames? {
        guard let first = pieces.first else { return nil }
        let count = pieces.reduce(0) { $0 + $1.count }
        return StreamFrames(pieces.flatMap(\.values), shape: [count] + first.shape[1...])
    }
}

/// (rows, columns, plane) as (columns, rows, plane).
private func swapped(_ values: [Float], _ rows: Int, _ columns: Int, _ plane: Int) -> [Float] {
    var out: [Float] = []
    out.reserveCapacity(values.count)
    for column in 0..<columns {
        for row in 0..<rows {
            let start = (row * columns + column) * plane
            out += values[start..<start + plane]
        }
    }
    return out
}
