// The part of Core ML's interface that HandheldCoreML uses, for type checks where Core ML is not installed.
// Agreement with this file is all that such a check proves.
import Foundation

public enum MLComputeUnits: Int, Hashable, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

public final class MLModelConfiguration: NSObject {
    public var computeUnits: MLComputeUnits = .all
    @available(iOS 18.0, macOS 15.0, *) public var functionName: String?
}

public enum MLMultiArrayDataType: Int { case float32, float16, double, int32 }

public final class MLMultiArray: NSObject {
    public let shape: [NSNumber]
    public let strides: [NSNumber]
    public let dataType: MLMultiArrayDataType
    public var count: Int { fatalError() }
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws { fatalError() }
    public init(
        dataPointer: UnsafeMutableRawPointer, shape: [NSNumber], dataType: MLMultiArrayDataType, strides: [NSNumber],
        deallocator: ((UnsafeMutableRawPointer) -> Void)? = nil
    ) throws { fatalError() }
    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R { fatalError() }
    public func withUnsafeMutableBytes<R>(_ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R) rethrows -> R {
        fatalError()
    }
    public func withUnsafeMutableBufferPointer<S, R>(
        ofType type: S.Type, _ body: (UnsafeMutableBufferPointer<S>, [Int]) throws -> R
    ) rethrows -> R { fatalError() }
}

public final class MLFeatureValue: NSObject {
    public init(multiArray: MLMultiArray) { fatalError() }
    public var multiArrayValue: MLMultiArray? { fatalError() }
}

public protocol MLFeatureProvider {
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
    public init(dictionary: [String: Any]) throws { fatalError() }
    public func featureValue(for featureName: String) -> MLFeatureValue? { fatalError() }
}

public final class MLMultiArrayConstraint: NSObject {
    public var shape: [NSNumber] { fatalError() }
    public var dataType: MLMultiArrayDataType { fatalError() }
}

public final class MLFeatureDescription: NSObject {
    public var multiArrayConstraint: MLMultiArrayConstraint? { fatalError() }
}

public final class MLModelDescription: NSObject {
    public var inputDescriptionsByName: [String: MLFeatureDescription] { fatalError() }
    public var outputDescriptionsByName: [String: MLFeatureDescription] { fatalError() }
}

public final class MLPredictionOptions: NSObject {
    public var outputBackings: [String: Any] = [:]
}

/// Of Objective-C's runtime, which every Apple framework brings.
public func autoreleasepool<R>(invoking body: () throws -> R) rethrows -> R { try body() }

public final class MLModel: NSObject {
    public var modelDescription: MLModelDescription { fatalError() }
    public static func compileModel(at url: URL) async throws -> URL { fatalError() }
    public static func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLModel { fatalError() }
    public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider { fatalError() }
    public func prediction(from input: any MLFeatureProvider, options: MLPredictionOptions) throws -> any MLFeatureProvider {
        fatalError()
    }
}

public final class MLCPUComputeDevice: NSObject {}
public final class MLGPUComputeDevice: NSObject {}
public final class MLNeuralEngineComputeDevice: NSObject {}

@available(iOS 17.0, macOS 14.0, *)
public enum MLComputeDevice {
    case cpu(MLCPUComputeDevice)
    case gpu(MLGPUComputeDevice)
    case neuralEngine(MLNeuralEngineComputeDevice)
}

public struct MLModelStructure {
    public enum Kind { case unsupported }
    public struct Program {
        public let functions: [String: Function]
        public struct Function { public let block: Block }
        public struct Block { public let operations: [Operation] }
        public final class Operation { public let operatorName: String = "" }
    }
}

@available(iOS 17.4, macOS 14.4, *)
public final class MLComputePlan {
    public enum ModelStructure {
        case unsupported
        case program(MLModelStructure.Program)
    }
    public struct DeviceUsage {
        public let supported: [MLComputeDevice]
        public let preferred: MLComputeDevice
    }
    public var modelStructure: ModelStructure { fatalError() }
    public static func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLComputePlan {
        fatalError()
    }
    public func deviceUsage(for operation: MLModelStructure.Program.Operation) -> DeviceUsage? { fatalError() }
}
