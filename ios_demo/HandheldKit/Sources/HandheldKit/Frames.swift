extension StreamFrames {
    /// One RGB frame as RGBA bytes, row by row, opaque; values beyond [-1, 1] are clamped, NaN is black. Throws `.tensors`
    /// for frames of other than three channels.
    public func rgba(_ frame: Int) throws -> [UInt8] {
        guard shape[1] == 3 else {
            throw BundleError(.tensors, "Frames have \(shape[1]) channels; RGB is wanted.")
        }
        let plane = shape[2] * shape[3]
        return [UInt8](unsafeUninitializedCapacity: 4 * plane) { bytes, initialized in
            bytes.initialize(repeating: 255)
            values.withUnsafeBufferPointer { values in
                for channel in 0..<3 {
                    let start = (frame * 3 + channel) * plane
                    for place in 0..<plane { bytes[4 * place + channel] = byte(values[start + place]) }
                }
            }
            initialized = 4 * plane
        }
    }
}

private func byte(_ value: Float) -> UInt8 {
    let scaled = (value + 1) * 127.5
    return scaled > 0 ? UInt8(min(scaled.rounded(), 255)) : 0  // the comparison is false for NaN
}
