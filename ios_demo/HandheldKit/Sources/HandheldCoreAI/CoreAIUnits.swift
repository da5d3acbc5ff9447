/// The compute unit that Core AI is asked for. It does not tell where a model ran: golden tensors, decoded once with each
/// of these, show whether all of them compute the same.
public enum CoreAIUnits: String, CaseIterable, Hashable, Sendable {
    /// What Core AI chooses.
    case all
    case cpuOnly
    case preferGPU
    case preferNeuralEngine

    /// As profiles name what was asked for.
    public var profileName: String { rawValue }
}

#if canImport(CoreAI)
    import CoreAI

    @available(iOS 27.0, macOS 27.0, *)
    extension CoreAIUnits {
        var options: SpecializationOptions {
            switch self {
            case .all: return .default
            case .cpuOnly: return .cpuOnly
            case .preferGPU: return SpecializationOptions(preferredComputeUnitKind: .gpu)
            case .preferNeuralEngine: return SpecializationOptions(preferredComputeUnitKind: .neuralEngine)
            }
        }
    }
#endif
