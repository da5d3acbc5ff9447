import Foundation

#if canImport(UIKit)
    import UIKit
#endif

/// What bears on a measurement and changes while one runs. Nil where the system does not tell.
public struct DeviceState: Equatable, Sendable {
    public enum Thermal: String, CaseIterable, Sendable {
        case nominal, fair, serious, critical
    }

    public let thermal: Thermal?
    public let lowPowerMode: Bool?
    public let charging: Bool?

    public init(thermal: Thermal?, lowPowerMode: Bool?, charging: Bool?) {
        self.thermal = thermal
        self.lowPowerMode = lowPowerMode
        self.charging = charging
    }

    #if canImport(Darwin)
        /// The state now. On iOS, `UIDevice.isBatteryMonitoringEnabled` must be on for `charging` to be known.
        @MainActor public static var now: DeviceState {
            let process = ProcessInfo.processInfo
            return DeviceState(
                thermal: Thermal(process.thermalState), lowPowerMode: process.isLowPowerModeEnabled, charging: isCharging)
        }

        @MainActor private static var isCharging: Bool? {
            #if canImport(UIKit)
                switch UIDevice.current.batteryState {
                case .charging, .full: return true
                case .unplugged: return false
                default: return nil
                }
            #else
                return nil
            #endif
        }
    #endif
}

#if canImport(Darwin)
    extension DeviceState.Thermal {
        init?(_ state: ProcessInfo.ThermalState) {
            switch state {
            case .nominal: self = .nominal
            case .fair: self = .fair
            case .serious: self = .serious
            case .critical: self = .critical
            @unknown default: return nil
            }
        }
    }
#endif
