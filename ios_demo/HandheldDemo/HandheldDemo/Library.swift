import Foundation
import HandheldKit

/// What lies in the app's Documents folder, where the Files app, Finder and AirDrop put bundles and packs.
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
        let manager = FileManager.default
        let children = (try? manager.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
        return children.compactMap(item).sorted { $0.name < $1.name }
    }

    private static func item(_ folder: URL) -> Item? {
        func holds(_ name: String) -> Bool {
            FileManager.default.fileExists(atPath: folder.appendingPathComponent(name).path)
        }
        if holds("neurons.bin") { return Item(folder: folder, kind: .pack) }
        return holds("manifest.json") ? Item(folder: folder, kind: .bundle) : nil
    }
}
