import Foundation

/// Memory of one tensor of a streamed program: contiguous, frames-first (frames, channels, height, width), in the
/// artefact's dtype. Begins as zeros.
///
/// Whoever holds it may write to it: it belongs to the decoder that made it, and to a program during a call.
public final class StreamTensor: @unchecked Sendable {
    public let shape: [Int]
    public let dtype: Manifest.DType
    public let memory: UnsafeMutableRawBufferPointer

    /// What Apple's GPU and Neural Engine take without copying: whole pages.
    private static let alignment = 16384

    /// Throws `.tensors` where there is no memory for it.
    public init(_ shape: [Int], _ dtype: Manifest.DType) throws {
        self.shape = shape
        self.dtype = dtype
        var start: UnsafeMutableRawPointer?
        guard let size = product(shape + [dtype.bytes]), size > 0, posix_memalign(&start, Self.alignment, size) == 0,
            let start
        else {
            throw BundleError(.tensors, "There is no memory for a tensor of shape \(shape). Export with a smaller --budget.")
        }
        memory = UnsafeMutableRawBufferPointer(start: start, count: size)
        clear()
    }

    deinit { free(memory.baseAddress) }

    func clear() {
        memory.initializeMemory(as: UInt8.self, repeating: 0)
    }

    /// Bytes of a row, and of a frame's channel.
    var rowBytes: Int { shape[3] * dtype.bytes }
    var planeBytes: Int { shape[2] * rowBytes }
    var frameBytes: Int { shape[1] * planeBytes }

    /// Sets all values, row-major.
    public func fill(_ values: [Float]) {
        precondition(values.count * dtype.bytes == memory.count)
        switch dtype {
        case .float32: values.withUnsafeBytes { memory.copyMemory(from: $0) }
        case .float16:
            let halves = memory.bindMemory(to: UInt16.self)
            for (place, value) in values.enumerated() { halves[place] = halfBits(value) }
        }
    }

    /// All values, row-major.
    public func floats() -> [Float] {
        let count = memory.count / dtype.bytes
        return [Float](unsafeUninitializedCapacity: count) { to, initialized in
            read(0, count, to.baseAddress!)
            initialized = count
        }
    }
}

/// Some rows of some frames of a tensor, where they lie.
struct StreamSlice {
    let tensor: StreamTensor
    var frames: Range<Int>
    var rows: Range<Int>

    /// Copies `count` of the frames, from the one at `first` on, to frames of `to` that have as many rows as the slice.
    func copy(_ count: Int, from first: Int, to: StreamTensor, at frame: Int) {
        let from = UnsafeRawBufferPointer(tensor.memory)
        let start = frames.lowerBound + first
        if rows == 0..<tensor.shape[2] {
            let size = count * tensor.frameBytes
            copyBytes(from, start * tensor.frameBytes, to.memory, frame * to.frameBytes, size)
            return
        }
        let channels = tensor.shape[1], size = rows.count * tensor.rowBytes
        for plane in 0..<count * channels {
            let offset = (start * channels + plane) * tensor.planeBytes + rows.lowerBound * tensor.rowBytes
            copyBytes(from, offset, to.memory, (frame * channels + plane) * to.planeBytes, size)
        }
    }

    /// The values, contiguous.
    func values() -> StreamFrames {
        let channels = tensor.shape[1], width = tensor.shape[3], size = rows.count * width
        let count = frames.count * channels * size
        let values = [Float](unsafeUninitializedCapacity: count) { to, initialized in
            for plane in 0..<frames.count * channels {
                let start = ((frames.lowerBound * channels + plane) * tensor.shape[2] + rows.lowerBound) * width
                tensor.read(start, size, to.baseAddress! + plane * size)
            }
            initialized = count
        }
        return StreamFrames(values, shape: [frames.count, channels, rows.count, width])
    }
}

extension StreamTensor {
    /// Values from a place on, as `Float`.
    fileprivate func read(_ start: Int, _ count: Int, _ to: UnsafeMutablePointer<Float>) {
        switch dtype {
        case .float32: to.initialize(from: memory.bindMemory(to: Float.self).baseAddress! + start, count: count)
        case .float16:
            let halves = memory.bindMemory(to: UInt16.self).baseAddress! + start
            for place in 0..<count { (to + place).initialize(to: float(bits: halves[place])) }
        }
    }
}

/// Tensors that nobody uses now, by shape.
///
/// One call at a time makes new states: a second set of them for every segment would be most of a pass' memory.
final class StreamTensorPool {
    private let dtype: Manifest.DType
    private var spare: [[Int]: [StreamTensor]] = [:]

    init(_ dtype: Manifest.DType) {
        self.dtype = dtype
    }

    /// A tensor of any contents.
    func take(_ shape: [Int]) throws -> StreamTensor {
        try spare[shape]?.popLast() ?? StreamTensor(shape, dtype)
    }

    func give(_ tensor: StreamTensor) {
        spare[tensor.shape, default: []].append(tensor)
    }
}

private func copyBytes(
    _ from: UnsafeRawBufferPointer, _ start: Int, _ to: UnsafeMutableRawBufferPointer, _ place: Int, _ size: Int
) {
    UnsafeMutableRawBufferPointer(rebasing: to[place..<place + size])
        .copyMemory(from: UnsafeRawBufferPointer(rebasing: from[start..<start + size]))
}

/// The product, or nil where it does not fit.
func product(_ factors: [Int]) -> Int? {
    factors.reduce(1 as Int?) { total, factor in
        guard let (value, overflow) = total?.multipliedReportingOverflow(by: factor), !overflow else { return nil }
        return value
    }
}
