#if canImport(CoreML)
    import CoreML
    import Foundation
    import HandheldKit

    extension Manifest.DType {
        var coreML: MLMultiArrayDataType { self == .float32 ? .float32 : .float16 }
    }

    extension MLMultiArray {
        /// Row-major values as an array of the dtype that the artefact takes. Throws `.tensors` for a wrong number of them.
        convenience init(_ values: [Float], shape: [Int], dtype: Manifest.DType) throws {
            guard shape.reduce(1, *) == values.count else {
                throw BundleError(.tensors, "\(values.count) values do not fill an input of shape \(shape).")
            }
            try self.init(shape: shape as [NSNumber], dataType: dtype.coreML)
            // A fresh array is contiguous.
            if dtype == .float32 {
                withUnsafeMutableBufferPointer(ofType: Float.self) { to, _ in _ = to.initialize(from: values) }
            } else {
                withUnsafeMutableBytes { to, _ in
                    for (place, value) in values.enumerated() {
                        to.storeBytes(of: halfBits(value), toByteOffset: 2 * place, as: UInt16.self)
                    }
                }
            }
        }

        /// A tensor's own memory, of any shape with as many values. Valid as long as the tensor is.
        convenience init(sharing tensor: StreamTensor, shape: [Int]) throws {
            try self.init(
                dataPointer: tensor.memory.baseAddress!, shape: shape as [NSNumber], dataType: tensor.dtype.coreML,
                strides: contiguousStrides(shape) as [NSNumber], deallocator: nil)
        }

        /// Copies the values, whatever strides Core ML chose. Throws `.tensors` where they are of another dtype or number.
        func copy(to tensor: StreamTensor) throws {
            guard dataType == tensor.dtype.coreML, count * tensor.dtype.bytes == tensor.memory.count else {
                throw BundleError(.tensors, "A program gave \(shape) where \(tensor.shape) is in the plan.")
            }
            withUnsafeBytes { bytes in
                copyContiguous(
                    bytes, shape.map(\.intValue), strides.map(\.intValue), tensor.dtype.bytes, to: tensor.memory)
            }
        }

        /// The values, row-major, whatever strides Core ML chose.
        func floats() throws -> [Float] {
            guard let dtype = [Manifest.DType.float32, .float16].first(where: { $0.coreML == dataType }) else {
                throw BundleError(.tensors, "The model gives values of another type than fp32 and fp16.")
            }
            let tensor = try StreamTensor([count, 1, 1, 1], dtype)
            try copy(to: tensor)
            return tensor.floats()
        }
    }
#endif
