import CoreGraphics
import CoreML
import Foundation
import HandheldCoreML
import HandheldKit
import SwiftUI

/// Decodes a bundle's golden latents over and over, and keeps what a profile needs.
@MainActor
final class Player: ObservableObject {
    @Published private(set) var images: [CGImage] = []
    @Published private(set) var latest: LiveMeter.Decoding?
    @Published private(set) var parity: Parity?
    @Published private(set) var profileFile: URL?
    @Published private(set) var message: String?
    @Published private(set) var isRunning = false
    @Published var computeUnits = MLComputeUnits.all

    let name: String
    private let folder: URL
    private var task: Task<Void, Never>?

    init(folder: URL) {
        self.folder = folder
        name = folder.lastPathComponent
    }

    func toggle() {
        isRunning ? stop() : start()
    }

    func stop() {
        task?.cancel()
    }

    private func start() {
        isRunning = true
        message = nil
        task = Task {
            do {
                try await run()
            } catch {
                message = "\(error)"
            }
            isRunning = false
        }
    }

    private func run() async throws {
        let bundle = try ModelBundle(folder: folder)
        guard let artifact = bundle.manifest.artifacts.first(where: { $0.runtime == .coreml }) else {
            throw BundleError(.missing, "\(name) holds no Core ML model. Export it with `--target ios`.")
        }
        let decoder = try await VideoDecoder(bundle, artifact, computeUnits: computeUnits)
        let golden = try bundle.golden()
        let input = bundle.manifest.inputs[0], output = bundle.manifest.outputs[0]
        guard let latents = golden.floats("input.\(input.name)"), let wanted = golden.floats("output.\(output.name)")
        else { throw BundleError(.tensors, "\(name) holds no golden tensors.") }
        while !Task.isCancelled {
            let (values, nanoseconds) = try await decoder.decode(latents, shape: input.shape)
            latest = .init(nanoseconds: nanoseconds, frames: output.shape[2])
            guard images.isEmpty else { continue }
            images = try Frames(values, shape: output.shape).images()
            parity = try Parity(of: values, against: wanted, range: output.range, tolerance: artifact.tolerance)
        }
    }
}
