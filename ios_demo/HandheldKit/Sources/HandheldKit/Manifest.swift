/// What a bundle says about itself: `manifest.json`, format version 1.
///
/// The format is documented by `runtime/schema/manifest.schema.json`. Fields that only people and tools read
/// (provenance, settings, rewrites, delegation) are kept as JSON.
public struct Manifest: Equatable, Sendable {
    public static let formatVersion: Int64 = 1

    public enum Runtime: String, CaseIterable, Sendable {
        case onnxruntime, executorch, coreml, coreai
        case executorchVulkan = "executorch-vulkan"
        case executorchCoreML = "executorch-coreml"
    }

    public enum DType: String, CaseIterable, Sendable {
        case float32, float16

        public var bytes: Int { self == .float32 ? 4 : 2 }
    }

    /// What an output is, and what an artefact gives it as.
    public enum OutputDType: String, CaseIterable, Sendable {
        case float32, float16
        /// 8-bit RGBA.
        case uint8
        /// 8-bit RGBA, one value a pixel: R is the lowest byte, alpha the highest.
        case int32
    }

    public enum Layout: String, CaseIterable, Sendable {
        /// Batch, channels, time, height, width.
        case ncthw = "NCTHW"
        /// Images, without time.
        case nchw = "NCHW"
        /// 8-bit RGBA, its channels last.
        case nthwc = "NTHWC"
        case nhwc = "NHWC"

        /// What a bundle is whose model gives this.
        var kind: String { self == .ncthw || self == .nthwc ? "video_decoder" : "image_decoder" }

        var isOfPixels: Bool { self == .nthwc || self == .nhwc }
    }

    /// One input or output, as a caller sees it.
    public struct TensorSpec: Equatable, Sendable {
        public let name: String
        public let shape: [Int]
        /// Never `int32`.
        public let dtype: OutputDType
        public let layout: Layout
        /// Nominal lowest and highest value; no clamp.
        public let range: ClosedRange<Double>?
        public let description: String
        /// Of latents: how plain ones and a diffusion model's become one another; nil where nothing is known.
        public let statistics: Statistics?
        /// Of latents: whether the model takes a diffusion model's, else plain ones.
        public let normalised: Bool

        /// Whether it is 8-bit RGBA.
        public var isPixels: Bool { dtype == .uint8 }

        /// Frames in a tensor of this shape, in this layout: batch times time; an image is one.
        public func frames(_ shape: [Int]) -> Int {
            zip(layout.rawValue, shape).reduce(1) { $1.0 == "N" || $1.0 == "T" ? $0 * $1.1 : $0 }
        }
    }

    /// How a diffusion model normalises latents: n = (z - mean) / std * scaling, z being plain. One value of mean and
    /// std per channel, or one for all.
    public struct Statistics: Equatable, Sendable {
        public let mean: [Double]
        public let std: [Double]
        public let scaling: Double
    }

    /// How far from the golden outputs an artefact may be; at least one limit is given.
    public struct Tolerance: Equatable, Sendable {
        public let maxAbs: Double?
        public let minPSNRdB: Double?
        public let reason: String
    }

    /// What an artefact computes in one shape.
    public struct Method: Equatable, Sendable {
        public let name: String
        public let inputs: [[Int]]
        public let outputs: [[Int]]
    }

    /// One lowered model.
    public struct Artifact: Equatable, Sendable {
        public let name: String
        public let target: String
        public let runtime: Runtime
        /// File or folder, relative to the bundle.
        public let path: String
        public let precision: String
        public let sha256: String
        public let sizeBytes: Int
        public let tolerance: Tolerance
        public let methods: [Method]
        public let inputDType: DType
        public let outputDType: OutputDType
        public let settings: JSON
        /// How a streamed artefact, a folder of programs, is run; nil for one program of whole clips.
        public let stream: StreamPlan?
    }

    /// The file of golden inputs and outputs.
    public struct Golden: Equatable, Sendable {
        public let path: String
        public let sha256: String
        public let sizeBytes: Int
    }

    public let name: String
    public let createdUTC: String
    public let provenance: JSON
    public let versions: [String: String]
    public let inputs: [TensorSpec]
    public let outputs: [TensorSpec]
    public let golden: Golden
    public let artifacts: [Artifact]

    /// Parses the text of a manifest. Throws `BundleError`: `.version` for another format version, `.malformed`
    /// with every fault at once otherwise, `.escapes` where the only faults are paths that leave the bundle.
    public init(parsing bytes: [UInt8], source: String) throws {
        guard String(validatingUTF8Bytes: bytes) != nil else {
            throw BundleError(.malformed, "\(source) is not UTF-8 text. Fetch or export the bundle again.")
        }
        let json: JSON
        do {
            json = try JSON.parse(bytes)
        } catch let error as JSONError {
            throw BundleError(.malformed, "\(source) is not valid JSON: \(error). Fetch or export the bundle again.")
        }
        guard let version = json["format_version"] else {
            throw BundleError(.malformed, "\(source) has no format_version: it is not the manifest of a bundle.")
        }
        guard version == .integer(Self.formatVersion) else {
            throw BundleError(
                .version,
                "\(source) has another format_version than \(Self.formatVersion), which this app understands. Update "
                    + "the app, or export the bundle again with a handheld of the app's version.")
        }
        let kinds = [Layout.ncthw, .nchw].map(\.kind)
        guard case .string(let kind)? = json["kind"], kinds.contains(kind) else {
            throw BundleError(
                .version, "\(source) is of none of the kinds that this app understands: \(kinds.joined(separator: ", ")).")
        }
        let faults = Faults()
        let manifest = Self(Field(json: json, place: "", faults: faults))
        if faults.lines.isEmpty { manifest.disagreements(kind, faults) }
        guard faults.lines.isEmpty else {
            let escapes = faults.lines.allSatisfy { $0.contains("wanted a path inside the bundle") }
            throw BundleError(
                escapes ? .escapes : .malformed,
                "\(source) is not valid:\n" + faults.lines.map { "  \($0)" }.joined(separator: "\n"))
        }
        self = manifest
    }

    private init(_ field: Field) {
        let f = field.object(
            "format_version", "kind", "name", "created_utc", "provenance", "versions", "inputs", "outputs", "golden",
            "artifacts")
        name = f("name").text()
        createdUTC = f("created_utc").utcTime()
        provenance = f("provenance").free()
        versions = f("versions").map { $0.text() }
        inputs = f("inputs").list(least: 1, TensorSpec.init)
        outputs = f("outputs").list(least: 1, TensorSpec.init)
        golden = Golden(f("golden"))
        artifacts = f("artifacts").list(least: 1, Artifact.init)
    }

    /// Faults between fields that are each well formed.
    private func disagreements(_ kind: String, _ faults: Faults) {
        for spec in outputs where spec.layout.kind != kind {
            faults.add("kind", "\(kind), and \(spec.name) is \(spec.layout.rawValue)")
        }
        for spec in inputs + outputs where spec.shape.count != spec.layout.rawValue.count {
            faults.add(spec.name, "\(spec.shape.count) dimensions, \(spec.layout.rawValue) has another number")
        }
        for (side, specs) in [("inputs", inputs), ("outputs", outputs)] {
            for (index, spec) in specs.enumerated() where spec.isPixels || spec.layout.isOfPixels {
                let isWhole = spec.isPixels && spec.layout.isOfPixels && spec.shape.last == 4 && spec.range == 0...255
                if isWhole && side == "outputs" { continue }
                faults.add(
                    "\(side)[\(index)].layout",
                    "\(spec.dtype.rawValue) \(spec.layout.rawValue) \(spec.shape); 8-bit RGBA is an output of dtype uint8, "
                        + "layout NTHWC or NHWC, 4 channels and range [0, 255]")
            }
        }
        let isPixels = outputs.contains { $0.isPixels }
        for (index, artifact) in artifacts.enumerated() {
            if [.uint8, .int32].contains(artifact.outputDType) != isPixels {
                faults.add("artifacts[\(index)].output_dtype", "\(artifact.outputDType.rawValue) does not go with these outputs")
            }
            if isPixels && artifact.stream != nil {
                faults.add("artifacts[\(index)].stream", "frames of a streamed artefact are floats, not pixels")
            }
        }
        for spec in inputs + outputs {
            guard let found = spec.statistics else { continue }
            let channels = spec.shape.count > 1 ? spec.shape[1] : 0
            let fits = [found.mean.count, found.std.count].allSatisfy { $0 == 1 || $0 == channels }
            if !fits || !(found.scaling > 0) || !found.std.allSatisfy({ $0 > 0 }) {
                faults.add("\(spec.name).statistics", "wanted 1 or \(channels) values of mean and std, std and scaling above 0")
            }
        }
        repeated("artifacts: name", artifacts.map(\.name), faults)
        let paths = ["manifest.json", golden.path] + artifacts.map(\.path)
        repeated("path", paths, faults)
        for outer in paths {
            for inner in paths where inner.hasPrefix(outer + "/") { faults.add("path", "\(inner) lies inside \(outer)") }
        }
        for (index, artifact) in artifacts.enumerated() { disagreements(artifact, "artifacts[\(index)]", faults) }
    }

    private func disagreements(_ artifact: Artifact, _ place: String, _ faults: Faults) {
        if artifact.tolerance.maxAbs == nil && artifact.tolerance.minPSNRdB == nil {
            faults.add("\(place).tolerance", "max_abs and min_psnr_db are both null: nothing would be checked")
        }
        repeated("\(place).methods: name", artifact.methods.map(\.name), faults)
        repeated("\(place).methods: inputs", artifact.methods.map { "\($0.inputs)" }, faults)
        let ranks = [inputs, outputs].map { $0.map(\.shape.count) }
        for (index, method) in artifact.methods.enumerated() {
            if index == 0 && (method.inputs != inputs.map(\.shape) || method.outputs != outputs.map(\.shape)) {
                faults.add("\(place).methods[0]", "its shapes are not those of the bundle's inputs and outputs")
            } else if [method.inputs, method.outputs].map({ $0.map(\.count) }) != ranks {
                faults.add(
                    "\(place).methods[\(index)]", "shapes of other tensors than the bundle's inputs and outputs")
            }
        }
        if let plan = artifact.stream { streamFaults(plan, artifact).forEach { faults.add("\(place).stream", $0) } }
        if artifact.methods.dropFirst() != artifacts[0].methods.dropFirst() {
            faults.add("\(place).methods", "after the first, not the same as those of artifacts[0]")
        }
    }
}

/// Where a plan contradicts itself or the clips of its artefact.
private func streamFaults(_ plan: StreamPlan, _ artifact: Manifest.Artifact) -> [String] {
    var faults: [String] = []
    for method in artifact.methods where faults.isEmpty {
        guard let taken = method.inputs.first, let given = method.outputs.first, taken.count == 5, given.count == 5 else {
            return ["5 dimensions each are needed of latents and frames"]
        }
        faults = plan.faults(latents: [taken[1], taken[3], taken[4]], frames: [given[1], given[3], given[4]])
        // Without faults, the plan's own numbers are small enough for this product.
        if faults.isEmpty && (taken[2] > Int32.max || plan.length(taken[2]) != given[2]) {
            faults.append("passes: they make another number of frames than \(method.name) says")
        }
    }
    return faults
}

private func repeated(_ what: String, _ values: [String], _ faults: Faults) {
    for value in Set(values).sorted() where values.filter({ $0 == value }).count > 1 {
        faults.add(what, "\"\(value)\" is used twice")
    }
}

private func shape(_ field: Field) -> [Int] {
    field.list(least: 1) { $0.integer(least: 1) }
}

private func isWord(_ character: Character) -> Bool {
    character.isLetter || character.isNumber || character == "_"
}

extension Manifest.TensorSpec {
    fileprivate init(_ field: Field) {
        let f = field.object(
            "name", "shape", "dtype", "layout", "range", "description", optional: ["statistics", "normalised"])
        name = f("name").text(of: isWord, "letters, digits and underscores")
        shape = HandheldKit.shape(f("shape"))
        dtype = f("dtype").choice(Manifest.OutputDType.self) ?? .float32
        if dtype == .int32 { field.faults.add("\(field.place).dtype", "wanted float32, float16 or uint8, found int32") }
        layout = f("layout").choice(Manifest.Layout.self) ?? .ncthw
        let bounds = f("range").optional { $0.list(least: 2) { $0.number() } }
        if let bounds, bounds.count != 2 || !(bounds[0] < bounds[1]) {
            field.faults.add("\(field.place).range", "wanted [lowest, highest]")
            range = nil
        } else {
            range = bounds.map { $0[0]...$0[1] }
        }
        description = f("description").text(empty: true)
        statistics = f("statistics").present(Manifest.Statistics.init)
        normalised = f("normalised").present { $0.bool() } ?? false
    }
}

extension Manifest.Statistics {
    fileprivate init(_ field: Field) {
        let f = field.object("mean", "std", "scaling")
        mean = f("mean").list(least: 1) { $0.number() }
        std = f("std").list(least: 1) { $0.number() }
        scaling = f("scaling").number()
    }
}

extension Manifest.Golden {
    fileprivate init(_ field: Field) {
        let f = field.object("path", "sha256", "size_bytes")
        path = f("path").relativePath()
        sha256 = f("sha256").sha256()
        sizeBytes = f("size_bytes").integer()
    }
}

extension Manifest.Tolerance {
    fileprivate init(_ field: Field) {
        let f = field.object("max_abs", "reason", "min_psnr_db")
        maxAbs = f("max_abs").optional { $0.number(least: 0) }
        reason = f("reason").text()
        minPSNRdB = f("min_psnr_db").optional { $0.number() }
    }
}

extension Manifest.Method {
    fileprivate init(_ field: Field) {
        let f = field.object("name", "inputs", "outputs")
        name = f("name").text(of: isWord, "letters, digits and underscores")
        inputs = f("inputs").list(least: 1, shape)
        outputs = f("outputs").list(least: 1, shape)
    }
}

extension Manifest.Artifact {
    fileprivate init(_ field: Field) {
        let f = field.object(
            "name", "target", "runtime", "path", "precision", "sha256", "size_bytes", "tolerance", "methods",
            "input_dtype", "output_dtype", "settings", "rewrites", "delegation", "lowering_seconds",
            optional: ["stream"])
        name = f("name").text()
        target = f("target").slug()
        runtime = f("runtime").choice(Manifest.Runtime.self) ?? .coreml
        path = f("path").relativePath()
        precision = f("precision").slug()
        sha256 = f("sha256").sha256()
        sizeBytes = f("size_bytes").integer()
        tolerance = Manifest.Tolerance(f("tolerance"))
        methods = f("methods").list(least: 1, Manifest.Method.init)
        inputDType = f("input_dtype").choice(Manifest.DType.self) ?? .float32
        outputDType = f("output_dtype").choice(Manifest.OutputDType.self) ?? .float32
        settings = f("settings").free()
        // What only people and tools read, but not what anyone may write there.
        _ = f("rewrites").list(Self.checkRewrite)
        _ = f("delegation").optional { $0.free() }
        _ = f("lowering_seconds").optional { $0.number(least: 0) }
        stream = f("stream").present(StreamPlan.init)
    }

    private static func checkRewrite(_ field: Field) {
        let f = field.object("name", "applied", "refused", "selected")
        _ = f("name").text()
        _ = f("applied").integer()
        _ = f("refused").list { refusal in
            let f = refusal.object("node", "module", "reason")
            _ = (f("node").text(), f("module").text(empty: true), f("reason").text())
        }
        _ = f("selected").list { selection in
            let f = selection.object("node", "module", "options")
            _ = (f("node").text(), f("module").text(empty: true))
            _ = f("options").list(least: 1) { option in
                let f = option.object("rewrite", "relative_cost", "weight_bytes", "refused")
                _ = (f("rewrite").text(), f("relative_cost").optional { $0.number(least: 0) })
                _ = (f("weight_bytes").optional { $0.integer() }, f("refused").optional { $0.text() })
            }
        }
    }
}
