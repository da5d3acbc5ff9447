import Foundation

/// What a loaded program says of one of its tensors.
public struct DeclaredTensor: Equatable, Sendable {
    /// Empty where the program does not say.
    public let shape: [Int]
    /// Nil where it is neither of ours.
    public let dtype: Manifest.DType?

    public init(shape: [Int], dtype: Manifest.DType?) {
        self.shape = shape
        self.dtype = dtype
    }
}

extension StreamPlan.Segment {
    /// Where a program's tensors are not the plan's.
    public func faults(
        inputs: [String: DeclaredTensor], outputs: [String: DeclaredTensor], _ dtype: Manifest.DType
    ) -> [String] {
        let unknown = Set(inputs.keys).subtracting(inputNames).sorted().map { "\($0) is not in the plan" }
        return unknown + faults(inputNames, inputShapes, inputs, dtype) + faults(outputNames, outputShapes, outputs, dtype)
    }

    private func faults(
        _ names: [String], _ shapes: [[Int]], _ found: [String: DeclaredTensor], _ dtype: Manifest.DType
    ) -> [String] {
        zip(names, shapes).compactMap { name, shape in
            guard let tensor = found[name] else { return "\(name) is missing" }
            if !tensor.shape.isEmpty && tensor.shape != shape { return "\(name) is \(tensor.shape), not \(shape)" }
            return tensor.dtype == dtype ? nil : "\(name) is not \(dtype.rawValue)"
        }
    }
}

extension Manifest.Artifact {
    /// The dtype of its fp32 or fp16 outputs. Throws `.version` for one that gives 8-bit RGBA: decoders here give floats.
    public func floatOutput() throws -> Manifest.DType {
        guard let dtype = Manifest.DType(rawValue: outputDType.rawValue) else {
            throw BundleError(
                .version, "\(name) gives frames as 8-bit RGBA, which this app does not show. Export it with --pixels float.")
        }
        return dtype
    }

    /// Throws `.version` for a Core ML artefact that was exported for a newer system than this one, as versions of
    /// iOS: macOS 13 runs what iOS 16 runs, and so on.
    public func checkSystem(
        _ version: OperatingSystemVersion = ProcessInfo.processInfo.operatingSystemVersion
    ) throws {
        guard case .string(let text)? = settings["minimum_deployment_target"], text.hasPrefix("iOS"),
            let wanted = Int(text.dropFirst(3))
        else { return }
        #if os(macOS)
            let major = version.majorVersion < 26 ? version.majorVersion + 3 : version.majorVersion
        #else
            let major = version.majorVersion
        #endif
        guard major >= wanted else {
            throw BundleError(
                .version, "\(name) needs iOS \(wanted), this is iOS \(major). Export it for this system: --target ios16 or ios.")
        }
    }
}

/// Strides of a row-major tensor, in elements.
public func contiguousStrides(_ shape: [Int]) -> [Int] {
    var strides: [Int] = [], stride = 1
    for extent in shape.reversed() {
        strides.append(stride)
        stride *= extent
    }
    return strides.reversed()
}

/// Copies a strided tensor to contiguous memory, row-major, in pieces as long as lie together in both.
///
/// - Parameters:
///   - strides: in elements.
///   - size: bytes of an element.
public func copyContiguous(
    _ from: UnsafeRawBufferPointer, _ shape: [Int], _ strides: [Int], _ size: Int, to: UnsafeMutableRawBufferPointer
) {
    // The innermost dimensions that are contiguous are one piece.
    var piece = 1, outer = shape.count
    while outer > 0 && (strides[outer - 1] == piece || shape[outer - 1] == 1) {
        piece *= shape[outer - 1]
        outer -= 1
    }
    let pieces = shape[..<outer].reduce(1, *)
    var index = [Int](repeating: 0, count: outer)
    for number in 0..<pieces {
        let start = zip(index, strides).reduce(0) { $0 + $1.0 * $1.1 }
        UnsafeMutableRawBufferPointer(rebasing: to[number * piece * size..<(number + 1) * piece * size])
            .copyMemory(from: UnsafeRawBufferPointer(rebasing: from[start * size..<(start + piece) * size]))
        for dimension in index.indices.reversed() {
            index[dimension] += 1
            if index[dimension] < shape[dimension] { break }
            index[dimension] = 0
        }
    }
}
