#if canImport(CoreML)
    import CoreML
    import Foundation
    import HandheldKit

    /// A segment of a streamed artefact as Core ML has it: reads and writes the decoder's own tensors.
    struct CoreMLProgram: StreamProgram, @unchecked Sendable {
        private let segment: StreamPlan.Segment
        private let model: MLModel

        /// Throws `BundleError(.tensors)` for a program with other tensors than the plan has, and Core ML's own errors.
        init(_ segment: StreamPlan.Segment, _ compiled: URL, _ configuration: MLModelConfiguration, _ dtype: Manifest.DType)
            async throws
        {
            self.segment = segment
            model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
            let description = model.modelDescription
            let faults = segment.faults(
                inputs: Self.tensors(description.inputDescriptionsByName),
                outputs: Self.tensors(description.outputDescriptionsByName), dtype)
            guard faults.isEmpty else {
                throw BundleError(
                    .tensors, "\(segment.program) is not what the plan says: \(faults.joined(separator: "; ")). Export again.")
            }
        }

        /// What Core ML hands out is released at once: a clip is many calls in one task.
        func call(_ inputs: [StreamTensor], _ outputs: [StreamTensor]) throws {
            try autoreleasepool {
                let features = try MLDictionaryFeatureProvider(
                    dictionary: try arrays(segment.inputNames, segment.inputShapes, inputs).mapValues {
                        MLFeatureValue(multiArray: $0)
                    })
                let backings = try arrays(segment.outputNames, segment.outputShapes, outputs)
                let options = MLPredictionOptions()
                options.outputBackings = backings
                let result = try model.prediction(from: features, options: options)
                for (name, tensor) in zip(segment.outputNames, outputs) {
                    guard let array = result.featureValue(for: name)?.multiArrayValue else {
                        throw BundleError(.tensors, "\(segment.program) gave no \"\(name)\". Export the bundle again.")
                    }
                    // A backing is a proposal: Core ML may have written to memory of its own.
                    if array !== backings[name] { try array.copy(to: tensor) }
                }
            }
        }

        private func arrays(_ names: [String], _ shapes: [[Int]], _ tensors: [StreamTensor]) throws -> [String: MLMultiArray] {
            var arrays: [String: MLMultiArray] = [:]
            for (name, (shape, tensor)) in zip(names, zip(shapes, tensors)) {
                arrays[name] = try MLMultiArray(sharing: tensor, shape: shape)
            }
            return arrays
        }

        private static func tensors(_ features: [String: MLFeatureDescription]) -> [String: DeclaredTensor] {
            features.mapValues { feature in
                let constraint = feature.multiArrayConstraint
                let dtype = [Manifest.DType.float32, .float16].first { $0.coreML == constraint?.dataType }
                return DeclaredTensor(shape: constraint?.shape.map(\.intValue) ?? [], dtype: dtype)
            }
        }
    }
#endif
