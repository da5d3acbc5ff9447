extension Profile {
    /// The whole profile, every key in it; `json.text` is what a file holds.
    public var json: JSON {
        .object([
            .init("schema_version", .integer(Self.schemaVersion)),
            .init("created_utc", .string(createdUTC)),
            .init("command", value(command)),
            .init("software", value(software)),
            .init("settings", settings.json),
            .init("device", device.json),
            .init("bundles", .array(bundles.map(\.json))),
            .init("subjects", .array(subjects.map(\.json))),
        ])
    }
}

private func value(_ text: String?) -> JSON { text.map { .string($0) } ?? .null }
private func value(_ number: Int?) -> JSON { number.map { .integer(Int64($0)) } ?? .null }
private func value(_ number: Double?) -> JSON { number.map { .number($0) } ?? .null }
private func value(_ flag: Bool?) -> JSON { flag.map { .bool($0) } ?? .null }
private func value(_ names: [String: String]) -> JSON {
    .object(names.sorted { $0.key < $1.key }.map { .init($0.key, .string($0.value)) })
}
private func value(_ shapes: [[Int]]?) -> JSON {
    shapes.map { .array($0.map { .array($0.map { value($0) }) }) } ?? .null
}

extension Profile.Settings {
    fileprivate var json: JSON {
        .object([
            .init("repeat", value(runs)),
            .init("warmup", value(warmup)),
            .init("rounds", value(rounds)),
            .init("threads", value(threads)),
            .init("cooldown_ns", value(cooldownNanoseconds)),
            .init("interleaved", .bool(interleaved)),
        ])
    }
}

extension Profile.Device {
    fileprivate var json: JSON {
        .object([
            .init("platform", .string(platform.rawValue)),
            .init("model", value(model)),
            .init("soc", value(soc)),
            .init("architecture", value(architecture)),
            .init("os", value(os)),
            .init("os_version", value(osVersion)),
            .init("cores", value(cores)),
            .init("cores_available", value(coresAvailable)),
            .init("ram_bytes", value(ramBytes)),
            .init("memory_limit_bytes", value(memoryLimitBytes)),
            .init("memory_metric", value(memoryMetric?.rawValue)),
            .init("emulated", value(emulated)),
        ])
    }
}

extension Profile.Origin {
    fileprivate var json: JSON {
        .object([
            .init("name", .string(name)),
            .init("created_utc", .string(createdUTC)),
            .init("provenance", provenance),
            .init("versions", value(versions)),
        ])
    }
}

extension Profile.Subject {
    fileprivate var json: JSON {
        let observed = unitsObserved.map { units in
            JSON.object(units.sorted { $0.key < $1.key }.map { .init($0.key, value($0.value)) })
        }
        let tolerance = JSON.object([
            .init("max_abs", value(maxAbsTolerance)), .init("min_psnr_db", value(minPSNRdBTolerance)),
        ])
        return .object([
            .init("label", .string(label)),
            .init("role", .string(role.rawValue)),
            .init("bundle", value(bundle)),
            .init("artifact", value(artifact)),
            .init("target", value(target)),
            .init("runtime", .string(runtime.rawValue)),
            .init("runtime_version", value(runtimeVersion)),
            .init("precision", .string(precision)),
            .init("sha256", .string(sha256)),
            .init("size_bytes", value(sizeBytes)),
            .init("method", value(method)),
            .init("input_shapes", value(inputShapes)),
            .init("output_shapes", value(outputShapes)),
            .init("unit", .string(unit.rawValue)),
            .init("units_per_run", value(unitsPerRun)),
            .init("prompt_tokens", value(promptTokens)),
            .init("threads", value(threads)),
            .init("compute_units", .object([.init("asked", value(unitsAsked)), .init("observed", observed ?? .null)])),
            .init("tolerance", hasTolerance ? tolerance : .null),
            .init("rounds", .array(rounds.map(\.json))),
            .init("parity", parity.map { .array($0.map(\.json)) } ?? .null),
            .init("error", value(error)),
        ])
    }
}

extension Profile.Round {
    fileprivate var json: JSON {
        .object([
            .init("load_ns", value(loadNanoseconds)),
            .init("first_run_ns", value(firstRunNanoseconds)),
            .init("latency_ns", .array(latencyNanoseconds.map { value($0) })),
            .init("first_frame_ns", .array(firstFrameNanoseconds.map { value($0) })),
            .init("baseline_bytes", value(baselineBytes)),
            .init("peak_bytes", value(peakBytes)),
            .init("flash", flash?.json ?? .null),
            .init("before", before.json),
            .init("after", after.json),
        ])
    }
}

extension Profile.Flash {
    fileprivate var json: JSON {
        .object([
            .init("budget_bytes", value(budgetBytes)),
            .init("bytes_read", value(bytesRead)),
            .init("neurons_selected", value(neuronsSelected)),
            .init("cache_hits", value(cacheHits)),
        ])
    }
}

extension DeviceState {
    fileprivate var json: JSON {
        .object([
            .init("thermal", value(thermal?.rawValue)),
            .init("low_power_mode", value(lowPowerMode)),
            .init("charging", value(charging)),
            .init("battery_percent", value(batteryPercent)),
            .init("load_average_1min", value(loadAverage1min)),
        ])
    }
}

extension Parity {
    fileprivate var json: JSON {
        .object([
            .init("output", .string(output)),
            .init("method", value(method)),
            .init("finite", .bool(figures != nil)),
            .init("max_abs_error", value(figures?.maxAbsError)),
            .init("mean_squared_error", value(figures?.meanSquaredError)),
            .init("peak", value(figures?.peak)),
        ])
    }
}
