import Foundation
import HandheldKit

/// What lies in the app's Documents folder, where the Files app, Finder and AirDrop put bundles, packs and latents.
enum Library {
    struct Item: Identifiable, Hashable {
        enum Kind { case bundle, pack }

        let folder: URL
        let kind: Kind
        var id: URL { folder }
        var name: String { folder.lastPathComponent }
    }

    static var folder: URL {
        FileManager.default.urls(for: .documentDirectory, in: .userDomainMask)[0]
    }

    /// Folders that look like bundles or packs, by name. Whether they are sound is found out when one is opened.
    static func items() -> [Item] {
        children().compactMap(item).sorted { $0.name < $1.name }
    }

    /// Files that look like latents, by name.
    static func latents() -> [URL] {
        children().filter { $0.pathExtension == "safetensors" }.sorted { $0.lastPathComponent < $1.lastPathComponent }
    }

    /// Copies a folder or a file that a person chose into the Documents folder, whole or not at all.
    static func add(_ chosen: URL) throws {
        let manager = FileManager.default
        let place = folder.appendingPathComponent(chosen.lastPathComponent)
        guard !manager.fileExists(atPath: place.path) else {
            throw BundleError(.missing, "There is a \(place.lastPathComponent) already. Remove it in the Files app first.")
        }
        let isOutside = chosen.startAccessingSecurityScopedResource()
        defer { if isOutside { chosen.stopAccessingSecurityScopedResource() } }
        let partial = manager.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? manager.removeItem(at: partial) }
        try manager.copyItem(at: chosen, to: partial)
        try manager.moveItem(at: partial, to: place)
    }

    /// Removes compiled models of bundles that are not there any more.
    static func tidy() {
        let hashes = items().filter { $0.kind == .bundle }.compactMap { try? ModelBundle(folder: $0.folder) }
            .flatMap { $0.manifest.artifacts.map(\.sha256) }
        try? CompiledModels.caches.keep(only: Set(hashes))
    }

    private static func children() -> [URL] {
        (try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
    }

    private static func item(_ folder: URL) -> Item? {
        func holds(_ name: String) -> Bool {
            FileManager.default.fileExists(atPath: folder.appendingPathComponent(name).path)
        }
        if holds("neurons.bin") { return Item(folder: folder, kind: .pack) }
        return holds("manifest.json") ? Item(folder: folder, kind: .bundle) : nil
    }
}
