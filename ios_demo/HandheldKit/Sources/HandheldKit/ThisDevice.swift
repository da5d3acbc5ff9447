import Foundation

#if canImport(UIKit)
    import UIKit
#endif

extension Profile.Device {
    /// The device that runs this, as far as the system says.
    @MainActor public static var this: Profile.Device {
        let process = ProcessInfo.processInfo
        let version = process.operatingSystemVersion
        #if canImport(UIKit)
            var device = Profile.Device(platform: .ios)
            device.os = "iOS"
            device.memoryMetric = .footprint
            device.memoryLimitBytes = memoryLimitBytes()
        #else
            var device = Profile.Device(platform: .host)
            device.memoryMetric = .rss
        #endif
        device.model = systemName("hw.machine")
        device.osVersion = "\(version.majorVersion).\(version.minorVersion).\(version.patchVersion)"
        device.cores = process.processorCount
        device.coresAvailable = process.activeProcessorCount
        device.ramBytes = Int(exactly: process.physicalMemory)
        #if arch(arm64)
            device.architecture = "arm64"
        #elseif arch(x86_64)
            device.architecture = "x86_64"
        #endif
        #if targetEnvironment(simulator)
            // The simulator runs the Mac's instructions, but no figure of it says anything about a phone.
            device.model = nil
            device.emulated = true
        #else
            device.emulated = false
        #endif
        return device
    }
}

#if canImport(UIKit)
    /// What the app holds and what it may still take before the system ends it.
    private func memoryLimitBytes() -> Int? {
        let left = os_proc_available_memory()
        guard left > 0, let held = footprintBytes() else { return nil }
        return left + Int(held)
    }
#endif

private func systemName(_ key: String) -> String? {
    #if canImport(Darwin)
        var size = 0
        guard sysctlbyname(key, nil, &size, nil, 0) == 0, size > 1 else { return nil }
        var bytes = [CChar](repeating: 0, count: size)
        guard sysctlbyname(key, &bytes, &size, nil, 0) == 0 else { return nil }
        return String(cString: bytes)
    #else
        return nil
    #endif
}
