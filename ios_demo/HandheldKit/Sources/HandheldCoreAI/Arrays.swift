#if canImport(CoreAI)
    import CoreAI
    import HandheldKit

    extension Manifest.DType {
        var coreAI: ScalarType { self == .float32 ? .float32 : .float16 }
    }

    @available(iOS 27.0, macOS 27.0, *)
    extension NDArray {
        /// A copy of a tensor's values, in another shape of as many.
        init(_ tensor: StreamTensor, shape: [Int]) throws {
            self.init(shape: shape, scalarType: tensor.dtype.coreAI)
            switch tensor.dtype {
            case .float32: try fill(from: tensor, as: Float.self)
            case .float16: try fill(from: tensor, as: Float16.self)
            }
        }

        /// Copies the values to a tensor, whatever strides Core AI chose: it pads rows.
        ///
        /// Throws `.tensors` where they are of another dtype or number.
        func copy(to tensor: StreamTensor) throws {
            guard scalarType == tensor.dtype.coreAI, shape.reduce(1, *) * tensor.dtype.bytes == tensor.memory.count else {
                throw BundleError(.tensors, "A program gave \(shape) where \(tensor.shape) is wanted.")
            }
            switch tensor.dtype {
            case .float32: copy(to: tensor, as: Float.self)
            case .float16: copy(to: tensor, as: Float16.self)
            }
        }

        private mutating func fill<Scalar: NDArrayScalar>(from tensor: StreamTensor, as type: Scalar.Type) throws {
            var view = mutableView(as: type)
            try view.withUnsafeMutablePointer { to, shape, strides in
                guard strides == contiguousStrides(shape) else {
                    throw BundleError(.tensors, "Core AI made an input of \(shape) with the strides \(strides).")
                }
                UnsafeMutableRawBufferPointer(start: to, count: tensor.memory.count)
                    .copyMemory(from: UnsafeRawBufferPointer(tensor.memory))
            }
        }

        private func copy<Scalar: NDArrayScalar>(to tensor: StreamTensor, as type: Scalar.Type) {
            view(as: type).withUnsafePointer { from, shape, strides in
                let last = zip(shape, strides).reduce(0) { $0 + ($1.0 - 1) * $1.1 }
                let bytes = UnsafeRawBufferPointer(start: from, count: (last + 1) * MemoryLayout<Scalar>.stride)
                copyContiguous(bytes, shape, strides, MemoryLayout<Scalar>.stride, to: tensor.memory)
            }
        }
    }
#endif
