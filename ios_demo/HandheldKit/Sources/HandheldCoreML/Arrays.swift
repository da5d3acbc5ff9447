#if canImport(CoreML)
    import CoreML
    import Foundation
    import HandheldKit

    extension MLMultiArray {
        /// Row-major values as an array of the dtype that the artefact takes. Throws `.tensors` for a wrong number of them.
        convenience init(_ values: [Float], shape: [Int], dtype: Manifest.DType) throws {
            guard shape.reduce(1, *) == values.count else {
                throw BundleError(.tensors, "\(values.count) values do not fill an input of shape \(shape).")
            }
            try self.init(shape: shape as [NSNumber], dataType: dtype == .float32 ? .float32 : .float16)
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

        /// The values, row-major, whatever strides Core ML chose.
        func floats() -> [Float] {
            let shape = self.shape.map(\.intValue)
            let strides = self.strides.map(\.intValue)
            var values = [Float]()
            values.reserveCapacity(count)
            withUnsafeBytes { bytes in
                forEachOffset(shape, strides) { offset in
                    if dataType == .float16 {
                        values.append(float(bits: bytes.loadUnaligned(fromByteOffset: 2 * offset, as: UInt16.self)))
                    } else {
                        values.append(bytes.loadUnaligned(fromByteOffset: 4 * offset, as: Float.self))
                    }
                }
            }
            return values
        }
    }

    private func forEachOffset(_ shape: [Int], _ strides: [Int], from start: Int = 0, _ body: (Int) -> Void) {
        guard let extent = shape.first, let stride = strides.first else { return body(start) }
        for index in 0..<extent {
            forEachOffset(Array(shape.dropFirst()), Array(strides.dropFirst()), from: start + index * stride, body)
        }
    }
#endif
