import HandheldKit
import SwiftUI

/// How fast frames come, and what memory and thermal state are now.
struct LiveMeter: View {
    let meter: DecodingMeter

    var body: some View {
        VStack(spacing: 6) {
            Reading("Frames per second", meter.framesPerSecond.map { String(format: "%.1f", $0) })
            Reading("Latency", meter.clipNanoseconds.map(milliseconds))
            Reading("To the first frame", meter.firstFrameNanoseconds.map(milliseconds))
            Reading("Frames", meter.frames > 0 ? "\(meter.frames)" : nil)
            DeviceMeter()
        }
    }

    private func milliseconds(_ nanoseconds: Int64) -> String {
        String(format: "%.1f ms", Double(nanoseconds) / 1e6)
    }
}

/// Memory, thermal state and Low Power Mode, twice a second.
struct DeviceMeter: View {
    var body: some View {
        TimelineView(.periodic(from: .now, by: 0.5)) { _ in
            let state = DeviceState.now
            VStack(spacing: 6) {
                Reading("Memory", footprintBytes().map { String(format: "%.0f MB", Double($0) / 1e6) })
                Reading("Thermal state", state.thermal?.rawValue)
                Reading("Low Power Mode", state.lowPowerMode.map { $0 ? "on" : "off" })
            }
        }
    }
}

private struct Reading: View {
    private let title: String
    private let value: String?

    init(_ title: String, _ value: String?) {
        self.title = title
        self.value = value
    }

    var body: some View {
        LabeledContent(title, value: value ?? "–")
    }
}
