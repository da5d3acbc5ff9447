import CoreML
import HandheldCoreML
import HandheldKit
import SwiftUI

/// One bundle: plays what its decoder makes of the golden latents, checks parity, shows and shares measurements.
struct BundleView: View {
    @StateObject private var player: Player

    init(folder: URL) {
        _player = StateObject(wrappedValue: Player(folder: folder))
    }

    var body: some View {
        List {
            Section {
                FramePlayer(images: player.images)
            }
            Section("Live") {
                LiveMeter(decoding: player.latest)
            }
            Section("Run") {
                Picker("Compute units", selection: $player.computeUnits) {
                    Text("All").tag(MLComputeUnits.all)
                    Text("Neural Engine").tag(MLComputeUnits.cpuAndNeuralEngine)
                    Text("GPU").tag(MLComputeUnits.cpuAndGPU)
                    Text("CPU").tag(MLComputeUnits.cpuOnly)
                }
                .disabled(player.isRunning)
                Button(player.isRunning ? "Stop" : "Decode and measure") { player.toggle() }
            }
            if let parity = player.parity {
                Section("Parity with the golden frames") {
                    LabeledContent(parity.fault == nil ? "Passed" : "Failed", value: parity.decibels)
                    LabeledContent("Largest error", value: parity.largestError)
                    if let fault = parity.fault { Text(fault).foregroundStyle(.red) }
                }
            }
            if let profile = player.profileFile {
                Section { ShareLink("Share the profile", item: profile) }
            }
            if let message = player.message {
                Section { Text(message).foregroundStyle(.red) }
            }
        }
        .navigationTitle(player.name)
        .onDisappear { player.stop() }
    }
}
