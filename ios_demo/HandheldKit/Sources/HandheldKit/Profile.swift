/// A measurement: the format that Python, Swift and Kotlin share, `runtime/schema/profile.schema.json`, version 2.
///
/// Facts as they were read: integers in nanoseconds and bytes, nil (never 0) where something is not known. Statistics are
/// computed by `handheld` alone.
public struct Profile: Equatable, Sendable {
    public static let schemaVersion: Int64 = 2

    /// `2026-11-23T18:00:00Z`.
    public var createdUTC: String
    /// Nil where an app measured.
    public var command: String?
    public var software: [String: String]
    public var settings: Settings
    public var device: Device
    public var bundles: [Origin]
    public var subjects: [Subject]

    public struct Settings: Equatable, Sendable {
        public var runs: Int
        public var warmup: Int
        public var rounds: Int
        public var threads: Int?
        public var cooldownNanoseconds: Int
        public var interleaved: Bool

        public init(
            runs: Int, warmup: Int, rounds: Int, threads: Int? = nil, cooldownNanoseconds: Int = 0,
            interleaved: Bool = false
        ) {
            self.runs = runs
            self.warmup = warmup
            self.rounds = rounds
            self.threads = threads
            self.cooldownNanoseconds = cooldownNanoseconds
            self.interleaved = interleaved
        }
    }

    public struct Device: Equatable, Sendable {
        public enum Platform: String, CaseIterable, Sendable { case host, ios, android }
        public enum MemoryMetric: String, CaseIterable, Sendable {
            case rss, pss
            case footprint = "phys_footprint"
        }

        public var platform: Platform
        public var model: String?
        public var soc: String?
        public var architecture: String?
        public var os: String?
        public var osVersion: String?
        public var cores: Int?
        public var coresAvailable: Int?
        public var ramBytes: Int?
        public var memoryLimitBytes: Int?
        public var memoryMetric: MemoryMetric?
        public var emulated: Bool?

        public init(platform: Platform) {
            self.platform = platform
        }
    }

    /// Where a model came from, copied from its bundle's manifest.
    public struct Origin: Equatable, Sendable {
        public var name: String
        public var createdUTC: String
        public var provenance: JSON
        public var versions: [String: String]

        public init(_ manifest: Manifest) {
            name = manifest.name
            createdUTC = manifest.createdUTC
            provenance = manifest.provenance
            versions = manifest.versions
        }
    }

    public struct Subject: Equatable, Sendable {
        public enum Role: String, CaseIterable, Sendable { case student, teacher }
        public enum Runtime: String, CaseIterable, Sendable {
            case onnxruntime, executorch, coreml, coreai, flash
            case executorchVulkan = "executorch-vulkan"
            case executorchCoreML = "executorch-coreml"
        }
        public enum Unit: String, CaseIterable, Sendable { case frame, token }

        public var label: String
        public var role = Role.student
        /// Index into `bundles`; nil for a flash pack.
        public var bundle: Int?
        public var artifact: String?
        public var target: String?
        public var runtime: Runtime
        public var runtimeVersion: String?
        public var precision: String
        public var sha256: String
        public var sizeBytes: Int
        public var method: String?
        public var inputShapes: [[Int]]?
        public var outputShapes: [[Int]]?
        public var unit: Unit
        public var unitsPerRun: Int
        public var promptTokens: Int?
        public var threads: Int?
        public var unitsAsked: String?
        /// Operations by the unit on which the runtime planned them.
        public var unitsObserved: [String: Int]?
        public var maxAbsTolerance: Double?
        public var minPSNRdBTolerance: Double?
        public var hasTolerance: Bool
        public var rounds: [Round] = []
        public var parity: [Parity]?
        public var error: String?

        /// A bundle's artefact, with everything that was measured still to be filled in. `output` is the bundle's spec of
        /// its frames, `method` the one of its shapes that is measured, nil the first.
        public init(
            label: String, bundle: Int, _ artifact: Manifest.Artifact, _ output: Manifest.TensorSpec, method name: String? = nil
        ) {
            let measured = artifact.methods.first { $0.name == name } ?? artifact.methods[0]
            self.label = label
            self.bundle = bundle
            self.artifact = artifact.name
            target = artifact.target
            runtime = Runtime(rawValue: artifact.runtime.rawValue)!  // the manifest's runtimes are among these
            precision = artifact.precision
            sha256 = artifact.sha256
            sizeBytes = artifact.sizeBytes
            method = artifact.methods.count > 1 ? measured.name : nil
            inputShapes = measured.inputs
            outputShapes = measured.outputs
            unit = .frame
            unitsPerRun = output.frames(measured.outputs[0])
            maxAbsTolerance = artifact.tolerance.maxAbs
            minPSNRdBTolerance = artifact.tolerance.minPSNRdB
            hasTolerance = true
        }

        /// A language model's flash pack, tokens being what is timed.
        public init(
            flash label: String, precision: String, sha256: String, sizeBytes: Int, promptTokens: Int, threads: Int
        ) {
            self.label = label
            runtime = .flash
            self.precision = precision
            self.sha256 = sha256
            self.sizeBytes = sizeBytes
            unit = .token
            unitsPerRun = 1
            self.promptTokens = promptTokens
            self.threads = threads
            unitsAsked = "cpu"
            hasTolerance = false
        }
    }

    /// From loading a model to letting it go.
    public struct Round: Equatable, Sendable {
        public var loadNanoseconds: Int?
        public var firstRunNanoseconds: Int?
        public var latencyNanoseconds: [Int] = []
        /// From the start of each timed run to its first frame; empty where a run gives all frames at once.
        public var firstFrameNanoseconds: [Int] = []
        public var baselineBytes: Int?
        public var peakBytes: Int?
        public var flash: Flash?
        public var before: DeviceState
        public var after: DeviceState

        public init(before: DeviceState, after: DeviceState) {
            self.before = before
            self.after = after
        }
    }

    /// What the flash engine did in the timed runs of a round; here 0 is a count.
    public struct Flash: Equatable, Sendable {
        public var budgetBytes: Int?
        public var bytesRead: Int?
        public var neuronsSelected: Int?
        public var cacheHits: Int?

        public init(budgetBytes: Int?, bytesRead: Int?, neuronsSelected: Int?, cacheHits: Int?) {
            self.budgetBytes = budgetBytes
            self.bytesRead = bytesRead
            self.neuronsSelected = neuronsSelected
            self.cacheHits = cacheHits
        }
    }

    public init(
        createdUTC: String, software: [String: String], settings: Settings, device: Device, bundles: [Origin],
        subjects: [Subject]
    ) {
        self.createdUTC = createdUTC
        self.software = software
        self.settings = settings
        self.device = device
        self.bundles = bundles
        self.subjects = subjects
    }
}
