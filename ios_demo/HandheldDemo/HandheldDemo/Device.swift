#if canImport(UIKit)
    import UIKit
#endif

/// What the app tells the phone.
@MainActor
enum Device {
    /// Profiles hold whether the phone was charging.
    static func watchBattery() {
        #if canImport(UIKit)
            UIDevice.current.isBatteryMonitoringEnabled = true
        #endif
    }

    /// A phone that goes to sleep ends a measurement.
    static func keepAwake(_ isAwake: Bool) {
        #if canImport(UIKit)
            UIApplication.shared.isIdleTimerDisabled = isAwake
        #endif
    }
}
