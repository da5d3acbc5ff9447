extension Profile {
    /// Parses a profile. Throws `BundleError`: `.version` for another schema version, else `.malformed` with every fault.
    public init(parsing bytes: [UInt8], source: String) throws {
        let json: JSON
        do {
            json = try JSON.parse(bytes)
        } catch let error as JSONError {
            throw BundleError(.malformed, "\(source) is not valid JSON: \(error).")
        }
        guard let version = json["schema_version"] else {
            throw BundleError(.malformed, "\(source) has no schema_version: it is not a profile.")
        }
        guard version == .integer(Self.schemaVersion) else {
            throw BundleError(
                .version, "\(source) has another schema_version than \(Self.schemaVersion), which this app understands.")
        }
        let faults = Faults()
        let profile = Self(Field(json: json, place: "", faults: faults))
        if faults.lines.isEmpty { profile.disagreements(faults) }
        guard faults.lines.isEmpty else {
            throw BundleError(
                .malformed,
                "\(source) is not a valid profile:\n" + faults.lines.map { "  \($0)" }.joined(separator: "\n"))
        }
        self = profile
    }

    private init(_ field: Field) {
        let f = field.object(
            "schema_version", "created_utc", "command", "software", "settings", "device", "bundles", "subjects")
        createdUTC = f("created_utc").utcTime()
        command = f("command").optionalText()
        software = f("software").map { $0.text() }
        settings = Settings(f("settings"))
        device = Device(f("device"))
        bundles = f("bundles").list(Origin.init)
        subjects = f("subjects").list(least: 1, Subject.init)
    }

    /// Faults between fields that are each well formed.
    private func disagreements(_ faults: Faults) {
        let labels = subjects.map(\.label)
        for label in Set(labels).sorted() where labels.filter({ $0 == label }).count > 1 {
            faults.add("subjects", "label \"\(label)\" is used twice")
        }
        for (index, subject) in subjects.enumerated() {
            if let bundle = subject.bundle, bundle >= bundles.count {
                faults.add("subjects[\(index)].bundle", "\(bundle), but there are \(bundles.count) bundles")
            }
        }
    }
}

extension Field {
    fileprivate func optionalText() -> String? { optional { $0.text() } }
    fileprivate func count() -> Int? { optional { $0.integer() } }
    fileprivate func positive() -> Int? { optional { $0.integer(least: 1) } }
    fileprivate func shapes() -> [[Int]]? {
        optional { $0.list(least: 1) { $0.list(least: 1) { $0.integer(least: 1) } } }
    }
}

extension Profile.Settings {
    fileprivate init(_ field: Field) {
        let f = field.object("repeat", "warmup", "rounds", "threads", "cooldown_ns", "interleaved")
        runs = f("repeat").integer(least: 1)
        warmup = f("warmup").integer()
        rounds = f("rounds").integer(least: 1)
        threads = f("threads").positive()
        cooldownNanoseconds = f("cooldown_ns").integer()
        interleaved = f("interleaved").bool()
    }
}

extension Profile.Device {
    fileprivate init(_ field: Field) {
        let f = field.object(
            "platform", "model", "soc", "architecture", "os", "os_version", "cores", "cores_available", "ram_bytes",
            "memory_limit_bytes", "memory_metric", "emulated")
        platform = f("platform").choice(Platform.self) ?? .ios
        model = f("model").optionalText()
        soc = f("soc").optionalText()
        architecture = f("architecture").optionalText()
        os = f("os").optionalText()
        osVersion = f("os_version").optionalText()
        cores = f("cores").positive()
        coresAvailable = f("cores_available").positive()
        ramBytes = f("ram_bytes").positive()
        memoryLimitBytes = f("memory_limit_bytes").positive()
        memoryMetric = f("memory_metric").optional { $0.choice(MemoryMetric.self) } ?? nil
        emulated = f("emulated").optional { $0.bool() }
    }
}

extension Profile.Origin {
    fileprivate init(_ field: Field) {
        let f = field.object("name", "created_utc", "provenance", "versions")
        name = f("name").text()
        createdUTC = f("created_utc").text()
        provenance = f("provenance").free()
        versions = f("versions").map { $0.text() }
    }
}

extension Profile.Subject {
    fileprivate init(_ field: Field) {
        let f = field.object(
            "label", "role", "bundle", "artifact", "target", "runtime", "runtime_version", "precision", "sha256",
            "size_bytes", "method", "input_shapes", "output_shapes", "unit", "units_per_run", "prompt_tokens", "threads",
            "compute_units", "tolerance", "rounds", "parity", "error")
        label = f("label").text()
        role = f("role").choice(Role.self) ?? .student
        bundle = f("bundle").count()
        artifact = f("artifact").optionalText()
        target = f("target").optionalText()
        runtime = f("runtime").choice(Runtime.self) ?? .coreml
        runtimeVersion = f("runtime_version").optionalText()
        precision = f("precision").text()
        sha256 = f("sha256").sha256()
        sizeBytes = f("size_bytes").integer(least: 1)
        method = f("method").optionalText()
        inputShapes = f("input_shapes").shapes()
        outputShapes = f("output_shapes").shapes()
        unit = f("unit").choice(Unit.self) ?? .frame
        unitsPerRun = f("units_per_run").integer(least: 1)
        promptTokens = f("prompt_tokens").positive()
        threads = f("threads").positive()
        let units = f("compute_units").object("asked", "observed")
        unitsAsked = units("asked").optionalText()
        unitsObserved = units("observed").optional { $0.map { $0.integer() } }
        let limits = f("tolerance").optional { $0.object("max_abs", "min_psnr_db") }
        hasTolerance = limits != nil
        maxAbsTolerance = limits?("max_abs").optional { $0.number(least: 0) }
        minPSNRdBTolerance = limits?("min_psnr_db").optional { $0.number() }
        rounds = f("rounds").list(Profile.Round.init)
        parity = f("parity").optional { $0.list(least: 1, Parity.init) }
        error = f("error").optionalText()
    }
}

extension Profile.Round {
    fileprivate init(_ field: Field) {
        let f = field.object(
            "load_ns", "first_run_ns", "latency_ns", "first_frame_ns", "baseline_bytes", "peak_bytes", "flash",
            "before", "after")
        loadNanoseconds = f("load_ns").positive()
        firstRunNanoseconds = f("first_run_ns").positive()
        latencyNanoseconds = f("latency_ns").list { $0.integer(least: 1) }
        firstFrameNanoseconds = f("first_frame_ns").list { $0.integer(least: 1) }
        baselineBytes = f("baseline_bytes").positive()
        peakBytes = f("peak_bytes").positive()
        flash = f("flash").optional(Profile.Flash.init)
        before = DeviceState(f("before"))
        after = DeviceState(f("after"))
    }
}

extension Profile.Flash {
    fileprivate init(_ field: Field) {
        let f = field.object("budget_bytes", "bytes_read", "neurons_selected", "cache_hits")
        budgetBytes = f("budget_bytes").positive()
        bytesRead = f("bytes_read").count()
        neuronsSelected = f("neurons_selected").count()
        cacheHits = f("cache_hits").count()
    }
}

extension DeviceState {
    fileprivate init(_ field: Field) {
        let f = field.object("thermal", "low_power_mode", "charging", "battery_percent", "load_average_1min")
        thermal = f("thermal").optional { $0.choice(Thermal.self) } ?? nil
        lowPowerMode = f("low_power_mode").optional { $0.bool() }
        charging = f("charging").optional { $0.bool() }
        batteryPercent = f("battery_percent").count()
        loadAverage1min = f("load_average_1min").optional { $0.number(least: 0) }
        if let batteryPercent, batteryPercent > 100 {
            field.faults.add("\(field.place).battery_percent", "wanted at most 100")
        }
    }
}

extension Parity {
    fileprivate init(_ field: Field) {
        let f = field.object("output", "method", "finite", "max_abs_error", "mean_squared_error", "peak")
        let errors = ["max_abs_error", "mean_squared_error", "peak"].map { f($0).optional { $0.number(least: 0) } }
        let finite = f("finite").bool()
        if errors.contains(where: { ($0 != nil) != finite }) {
            field.faults.add(field.place, "its figures are to be null exactly where finite is false")
        }
        var figures: Figures?
        if case (let worst?, let mean?, let peak?) = (errors[0], errors[1], errors[2]) {
            figures = Figures(maxAbsError: worst, meanSquaredError: mean, peak: peak)
        }
        self.init(output: f("output").text(), method: f("method").optionalText(), figures: figures)
    }
}
