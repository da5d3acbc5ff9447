import HandheldKit
import SwiftUI

/// The last run's time and frame rate, and what memory and thermal state are now.
struct LiveMeter: View {
    struct Decoding: Equatable {
        let nanoseconds: Int64
        let frames: Int
    }

    let decoding: Decoding?

    var body: some View {
        TimelineView(.periodic(from: .now, by: 0.5)) { _ in
            let state = DeviceState.now
            VStack(spacing: 6) {
                row("Frames per second", decoding.map { String(format: "%.1f", 1e9 * Double($0.frames) / Double($0.nanoseconds)) })
                row("Latency", decoding.map { String(format: "%.1f ms", Double($0.nanoseconds) / 1e6) })
                row("Memory", footprintBytes().map { String(format: "%.0f MB", Double($0) / 1e6) })
                row("Thermal state", state.thermal?.rawValue)
                row("Low Power Mode", state.lowPowerMode.map { $0 ? "on" : "off" })
            }
        }
    }

    private func row(_ title: String, _ value: String?) -> some View {
        LabeledContent(title, value: value ?? "–")
    }
}
