/// A decoded clip: RGB, nominally in [-1, 1], in the layout of the bundle's output (1, 3, T, H, W).
public struct Frames: Sendable {
    public let count: Int
    public let height: Int
    public let width: Int
    private let values: [Float]

    /// Throws `.tensors` for values that are not one clip of three channels.
    public init(_ values: [Float], shape: [Int]) throws {
        guard shape.count == 5, shape[0] == 1, shape[1] == 3, shape.reduce(1, *) == values.count else {
            throw BundleError(.tensors, "Frames are \(values.count) values of shape \(shape); (1, 3, T, H, W) is wanted.")
        }
        count = shape[2]
        height = shape[3]
        width = shape[4]
        self.values = values
    }

    /// One frame as RGBA bytes, row by row, opaque; values beyond [-1, 1] are clamped, NaN is black.
    public func rgba(_ frame: Int) -> [UInt8] {
        let plane = height * width
        var bytes = [UInt8](repeating: 255, count: 4 * plane)
        for channel in 0..<3 {
            let start = (channel * count + frame) * plane
            for place in 0..<plane { bytes[4 * place + channel] = byte(values[start + place]) }
        }
        return bytes
    }
}

private func byte(_ value: Float) -> UInt8 {
    let scaled = (value + 1) * 127.5
    return scaled > 0 ? UInt8(min(scaled.rounded(), 255)) : 0  // the comparison is false for NaN
}
