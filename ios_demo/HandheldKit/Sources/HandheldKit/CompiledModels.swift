import Foundation

/// Compiled models, kept under the hash of what they were compiled from.
public struct CompiledModels: Sendable {
    private let folder: URL

    public init(folder: URL) {
        self.folder = folder
    }

    /// Where this app keeps them; the system may empty it.
    public static var caches: CompiledModels {
        get throws {
            let folder = try FileManager.default.url(
                for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
            return CompiledModels(folder: folder)
        }
    }

    /// The compiled model of an artefact, or of one program of a streamed one; `compile` makes it where it is not there yet
    /// and gives its place, from which it is moved.
    public func url(sha256: String, program: String?, compile: () async throws -> URL) async throws -> URL {
        let manager = FileManager.default
        var digest = SHA256Digest()
        digest.update(Array((program ?? "").utf8))
        let part = program == nil ? "" : "-\(digest.finalize().prefix(16))"
        let kept = folder.appendingPathComponent(Self.prefix + sha256 + part + Self.suffix)
        if manager.fileExists(atPath: kept.path) { return kept }
        let fresh = try await compile()
        // A rename is atomic: whoever finds the folder finds it whole. Another task may have been first.
        do {
            try manager.moveItem(at: fresh, to: kept)
        } catch where manager.fileExists(atPath: kept.path) {
            try? manager.removeItem(at: fresh)
        }
        return kept
    }

    /// Removes what was compiled from other artefacts than these, as of bundles that are gone.
    public func keep(only sha256: Set<String>) throws {
        for name in try FileManager.default.contentsOfDirectory(atPath: folder.path)
        where name.hasPrefix(Self.prefix) && name.hasSuffix(Self.suffix) {
            if !sha256.contains(String(name.dropFirst(Self.prefix.count).prefix(64))) {
                try FileManager.default.removeItem(at: folder.appendingPathComponent(name))
            }
        }
    }

    private static let prefix = "handheld-"
    private static let suffix = ".mlmodelc"
}
