import Foundation

#if canImport(UIKit)
    import UIKit
#endif

/// What bears on a measurement and changes while one runs. Nil where the system does not tell.
public struct DeviceState: Equatable, Sendable {
    public enum Thermal: String, CaseIterable, Sendable {
        /// Apple's words.
        case nominal, fair, serious
        /// Both systems' word.
        case critical
        /// Android's words.
        case none, light, moderate, severe, emergency, shutdown
    }

    public var thermal: Thermal?
    public var lowPowerMode: Bool?
    /// On a cable, full or not.
    public var charging: Bool?
    /// 0 to 100.
    public var batteryPercent: Int?
    public var loadAverage1min: Double?

    public init() {}

    /// The state now. On iOS, `UIDevice.isBatteryMonitoringEnabled` must be on for the battery to be known.
    @MainActor public static var now: DeviceState {
        var state = DeviceState()
        #if canImport(Darwin)
            state.thermal = Thermal(ProcessInfo.processInfo.thermalState)
            state.lowPowerMode = ProcessInfo.processInfo.isLowPowerModeEnabled
        #endif
        #if canImport(UIKit)
            let device = UIDevice.current
            switch device.batteryState {
            case .charging, .full: state.charging = true
            case .unplugged: state.charging = false
            default: break
            }
            if device.batteryLevel >= 0 { state.batteryPercent = Int((100 * device.batteryLevel).rounded()) }
        #endif
        return state
    }
}

#if canImport(Darwin)
    extension DeviceState.Thermal {
        fileprivate init?(_ state: ProcessInfo.ThermalState) {
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
