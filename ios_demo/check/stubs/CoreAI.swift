// The part of Core AI's interface that HandheldCoreAI uses, for type checks where Core AI is not installed. Written after
// Apple's documentation of iOS 27. Agreement with this file is all that such a check proves.
import Foundation

public enum ComputeUnitKind: Hashable, Sendable { case cpu, gpu, neuralEngine }

public struct SpecializationOptions: Sendable {
    public static let `default` = SpecializationOptions()
    public static let cpuOnly = SpecializationOptions()
    private init() {}
    public init(preferredComputeUnitKind: ComputeUnitKind) { fatalError() }
}

public enum ScalarType: Hashable, Sendable { case float16, float32, int32, uint8 }

public protocol NDArrayScalar {}
extension Float: NDArrayScalar {}
extension Float16: NDArrayScalar {}

public struct NDArrayDescriptor: Sendable {
    public var shape: [Int?] { fatalError() }
    public var scalarType: ScalarType { fatalError() }
}

public struct NDArray: @unchecked Sendable {
    public init(shape: [Int], scalarType: ScalarType) { fatalError() }
    public var shape: [Int] { fatalError() }
    public var scalarType: ScalarType { fatalError() }
    public func view<Scalar: NDArrayScalar>(as type: Scalar.Type) -> View<Scalar> { fatalError() }
    public mutating func mutableView<Scalar: NDArrayScalar>(as type: Scalar.Type) -> MutableView<Scalar> { fatalError() }

    public struct View<Scalar> {
        /// Strides are in elements.
        public func withUnsafePointer<R>(_ body: (UnsafePointer<Scalar>, [Int], [Int]) throws -> R) rethrows -> R {
            fatalError()
        }
    }
    public struct MutableView<Scalar> {
        public mutating func withUnsafeMutablePointer<R>(
            _ body: (UnsafeMutablePointer<Scalar>, [Int], [Int]) throws -> R
        ) rethrows -> R { fatalError() }
    }
}

public struct InferenceValue {
    public var ndArray: NDArray? { fatalError() }
}

public struct InferenceOutputs {
    public mutating func remove(_ name: String) -> InferenceValue? { fatalError() }
}

public struct InferenceFunctionDescriptor: Sendable {
    public var inputNames: [String] { fatalError() }
    public var outputNames: [String] { fatalError() }
    public func inputDescriptor(of name: String) -> NDArrayDescriptor? { fatalError() }
    public func outputDescriptor(of name: String) -> NDArrayDescriptor? { fatalError() }
}

public final class InferenceFunction: Sendable {
    public var descriptor: InferenceFunctionDescriptor { fatalError() }
    public func run(inputs: [String: NDArray]) async throws -> InferenceOutputs { fatalError() }
}

@available(iOS 27.0, macOS 27.0, *)
public final class AIModel: Sendable {
    public init(contentsOf url: URL, options: SpecializationOptions) async throws { fatalError() }
    public func loadFunction(named name: String) throws -> InferenceFunction? { fatalError() }
}
