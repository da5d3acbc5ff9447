#if canImport(CoreML)
    import CoreML
    import Foundation

    extension MLComputeUnits {
        /// As profiles name what was asked for.
        public var profileName: String {
            switch self {
            case .cpuOnly: return "cpuOnly"
            case .cpuAndGPU: return "cpuAndGPU"
            case .cpuAndNeuralEngine: return "cpuAndNeuralEngine"
            default: return "all"
            }
        }
    }

    /// How many of a compiled model's operations Core ML plans to run where: "cpu", "gpu" and "ane".
    ///
    /// This is Core ML's plan under `configuration`, which is the closest that the system tells to what was used; nil before
    /// iOS 17.4 and for models that are no ML program.
    func plannedDevices(_ compiled: URL, _ configuration: MLModelConfiguration) async throws -> [String: Int]? {
        guard #available(iOS 17.4, macOS 14.4, *) else { return nil }
        let plan = try await MLComputePlan.load(contentsOf: compiled, configuration: configuration)
        guard case .program(let program) = plan.modelStructure,
            let main = program.functions[configuration.plannedFunction] ?? program.functions.first?.value
        else { return nil }
        var counts: [String: Int] = [:]
        for operation in main.block.operations {
            guard let device = plan.deviceUsage(for: operation)?.preferred else { continue }  // constants have none
            counts[device.profileName, default: 0] += 1
        }
        return counts
    }

    extension MLModelConfiguration {
        fileprivate var plannedFunction: String {
            if #available(iOS 18.0, macOS 15.0, *), let name = functionName { return name }
            return "main"
        }
    }

    @available(iOS 17.0, macOS 14.0, *)
    extension MLComputeDevice {
        fileprivate var profileName: String {
            switch self {
            case .cpu: return "cpu"
            case .gpu: return "gpu"
            case .neuralEngine: return "ane"
            @unknown default: return "other"
            }
        }
    }
#endif
