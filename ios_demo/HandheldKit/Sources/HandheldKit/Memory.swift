import Foundation

/// What this process holds now, in bytes, as the system counts it against the app's limit; nil where it does not say.
public func footprintBytes() -> Int64? {
    #if canImport(Darwin)
        return taskInfo().map { Int64($0.phys_footprint) }
    #else
        return statusBytes("VmRSS:")
    #endif
}

/// The most that this process ever held, in bytes.
public func peakFootprintBytes() -> Int64? {
    #if canImport(Darwin)
        return taskInfo().map { Int64($0.ledger_phys_footprint_peak) }
    #else
        return statusBytes("VmHWM:")
    #endif
}

#if canImport(Darwin)
    private func taskInfo() -> task_vm_info_data_t? {
        var info = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
        let status = withUnsafeMutablePointer(to: &info) { pointer in
            pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
                task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
            }
        }
        return status == KERN_SUCCESS ? info : nil
    }
#else
    private func statusBytes(_ key: String) -> Int64? {
        guard let text = try? String(contentsOfFile: "/proc/self/status", encoding: .utf8),
            let line = text.split(separator: "\n").first(where: { $0.hasPrefix(key) }),
            let kilobytes = line.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap({ Int64($0) })
        else { return nil }
        return kilobytes * 1024
    }
#endif
