import CoreML
import HandheldCoreML
import HandheldKit
import SwiftUI

/// One bundle: plays what its decoder makes of latents, checks parity, shows and shares measurements.
struct BundleView: View {
    @StateObject private var player: Player

    init(folder: URL) {
        _player = StateObject(wrappedValue: Player(folder: folder))
    }

    var body: some View {
        List {
            Section {
                if let image = player.image {
                    Image(decorative: image, scale: 1).resizable().scaledToFit()
                } else {
                    Color.black.aspectRatio(1, contentMode: .fit)
                }
            }
            Section("Live") {
                LiveMeter(meter: player.meter)
            }
            Section("Run") {
                choices.disabled(player.activity != .none)
                if player.activity == .none {
                    Button("Play") { player.play() }
                    Button("Decode and measure") { player.measure() }
                } else {
                    Button("Stop") { player.stop() }
                }
            }
            .disabled(player.artifacts.isEmpty)
            ForEach(player.verdicts) { verdict in
                Section("Parity with the golden frames: \(verdict.id)") {
                    LabeledContent(verdict.fault == nil ? "Passed" : "Failed", value: verdict.decibels)
                    LabeledContent("Largest error", value: verdict.largestError)
                    if let fault = verdict.fault { Text(fault).foregroundStyle(.red) }
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
        .onAppear { player.open() }
        .task { await player.heedMemory() }
        .onDisappear { player.stop() }
    }

    @ViewBuilder private var choices: some View {
        if player.artifacts.count > 1 {
            Picker("Model", selection: $player.artifact) {
                ForEach(player.artifacts, id: \.name) { Text("\($0.name), \($0.precision)").tag($0.name) }
            }
        }
        Picker("Clip", selection: $player.clip) {
            ForEach(player.clips) { Text($0.name).tag($0.source) }
        }
        LabeledContent("Takes latents", value: player.latentKind == .plain ? "plain, of a VAE" : "normalised, of a diffusion model")
        if case .file = player.clip {
            Picker("The file's latents are", selection: $player.fileKind) {
                Text("As the file says").tag(LatentKind?.none)
                Text("Plain").tag(LatentKind?.some(.plain))
                Text("Normalised").tag(LatentKind?.some(.normalised))
            }
        }
        Picker("Compute units", selection: $player.computeUnits) {
            Text("All").tag(MLComputeUnits.all)
            Text("Neural Engine").tag(MLComputeUnits.cpuAndNeuralEngine)
            Text("GPU").tag(MLComputeUnits.cpuAndGPU)
            Text("CPU").tag(MLComputeUnits.cpuOnly)
        }
    }
}
