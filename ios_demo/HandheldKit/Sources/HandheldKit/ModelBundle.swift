import Foundation

/// A bundle in a folder: its manifest, and what it takes to trust its files.
///
/// Nothing is hashed until it is asked for; hash an artefact (`check`) before you hand it to a runtime.
public struct ModelBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest

    /// Reads the manifest of the bundle in `folder`. Throws `BundleError`.
    public init(folder: URL) throws {
        let source = folder.appendingPathComponent("manifest.json")
        let bytes: [UInt8]
        do {
            bytes = [UInt8](try Data(contentsOf: source))
        } catch {
            throw BundleError(
                .missing,
                "\(folder.lastPathComponent) is not a bundle: its manifest.json cannot be read. Give the folder that "
                    + "`handheld export` wrote.")
        }
        self.folder = folder
        manifest = try Manifest(parsing: bytes, source: "\(folder.lastPathComponent)/manifest.json")
        for path in [manifest.golden.path] + manifest.artifacts.map(\.path) { _ = try locate(path) }
    }

    /// The place of a file or folder of the bundle. Throws `.escapes` where a symbolic link leads out of it.
    public func locate(_ relative: String) throws -> URL {
        let url = folder.appendingPathComponent(relative)
        let inside = folder.resolvingSymlinksInPath().path + "/"
        guard isContained(relative), url.resolvingSymlinksInPath().path.hasPrefix(inside) else {
            throw BundleError(
                .escapes,
                "\(folder.lastPathComponent): \(relative) leads out of the bundle. A bundle holds its own files; do not "
                    + "use this one unless you know who made it.")
        }
        return url
    }

    /// Compares an artefact's size and SHA-256 with the manifest. Throws `.missing` or `.altered`.
    public func check(_ artifact: Manifest.Artifact) throws {
        try check(artifact.path, artifact.sizeBytes, artifact.sha256)
    }

    /// The shapes of every artefact, as `golden` takes them: nil is the first.
    public var shapes: [String?] {
        [nil] + manifest.artifacts[0].methods.dropFirst().map(\.name)
    }

    /// Golden inputs and outputs, named `input.latents`, or `input.latents.NAME` for a further shape; the file is hashed
    /// first. Throws `.missing`, `.altered`, or `.tensors` for one that does not hold what the manifest says.
    public func golden(method: String? = nil) throws -> Safetensors {
        let golden = manifest.golden
        let methods = manifest.artifacts[0].methods
        guard let shape = method.map({ name in methods.dropFirst().first { $0.name == name } }) ?? methods[0] else {
            throw BundleError(.tensors, "\(folder.lastPathComponent) has no shape \(method ?? "").")
        }
        try check(golden.path, golden.sizeBytes, golden.sha256)
        let tensors = try Safetensors(contentsOf: try locate(golden.path), name: golden.path)
        let suffix = method.map { ".\($0)" } ?? ""
        for (side, specs, shapes) in [("input", manifest.inputs, shape.inputs), ("output", manifest.outputs, shape.outputs)] {
            for (spec, shape) in zip(specs, shapes) {
                let name = "\(side).\(spec.name)\(suffix)"
                guard tensors.shapes[name] == shape, tensors.dtype(name) == spec.dtype else {
                    throw BundleError(
                        .tensors,
                        "\(golden.path): no \(name) of \(spec.dtype.rawValue) and shape \(shape). Export the bundle again.")
                }
                guard tensors.floats(name)?.allSatisfy(\.isFinite) == true else {
                    throw BundleError(.tensors, "\(golden.path): \(name) holds NaN or infinity. Export the bundle again.")
                }
            }
        }
        return tensors
    }

    private func check(_ relative: String, _ sizeBytes: Int, _ sha256: String) throws {
        let files = try FileTree(try locate(relative), name: "\(folder.lastPathComponent)/\(relative)")
        guard files.sizeBytes == sizeBytes else {
            let word = files.sizeBytes < sizeBytes ? "is truncated" : "has grown"
            throw BundleError(
                .altered,
                "\(relative) \(word): \(files.sizeBytes) bytes, the manifest says \(sizeBytes). Fetch or export the "
                    + "bundle again.")
        }
        let found = try files.sha256()
        guard found == sha256 else {
            throw BundleError(
                .altered,
                "\(relative) was altered: SHA-256 \(found), the manifest says \(sha256). Fetch or export the bundle "
                    + "again.")
        }
    }
}

/// A file, or the files below a folder, as the bundle format hashes them.
struct FileTree {
    private let root: URL
    private let name: String
    private let isFolder: Bool
    private let files: [(relative: String, sizeBytes: Int)]

    var sizeBytes: Int { files.reduce(0) { $0 + $1.sizeBytes } }

    /// Throws `.missing` for a path that is not there, `.escapes` for a link or a special file below it.
    init(_ root: URL, name: String) throws {
        self.root = root
        self.name = name
        let kind = try Self.kind(root, name)
        isFolder = kind == .typeDirectory
        files = try Self.below(root, isFolder ? "" : root.lastPathComponent, name)
            .sorted { $0.relative.utf8.lexicographicallyPrecedes($1.relative.utf8) }
    }

    /// SHA-256 of a file's contents; of a folder as `handheld` defines it: path, zero byte, size in decimal digits, zero
    /// byte and contents of each file, in the order of the paths' bytes.
    func sha256() throws -> String {
        var digest = SHA256Digest()
        for file in files {
            if isFolder { digest.update(Array(file.relative.utf8) + [0] + Array("\(file.sizeBytes)".utf8) + [0]) }
            let url = isFolder ? root.appendingPathComponent(file.relative) : root
            guard let handle = try? FileHandle(forReadingFrom: url) else { throw unreadable(name) }
            defer { try? handle.close() }
            while let chunk = try? handle.read(upToCount: 1 << 20), !chunk.isEmpty { digest.update([UInt8](chunk)) }
        }
        return digest.finalize()
    }

    private static func below(_ url: URL, _ relative: String, _ name: String) throws -> [(relative: String, sizeBytes: Int)] {
        let manager = FileManager.default
        guard try kind(url, name) == .typeDirectory else {
            let attributes = try? manager.attributesOfItem(atPath: url.path)
            guard let size = attributes?[.size] as? NSNumber else { throw unreadable(name) }
            return [(relative, size.intValue)]
        }
        guard let children = try? manager.contentsOfDirectory(atPath: url.path) else { throw unreadable(name) }
        return try children.flatMap { child in
            try below(url.appendingPathComponent(child), relative.isEmpty ? child : "\(relative)/\(child)", name)
        }
    }

    private static func kind(_ url: URL, _ name: String) throws -> FileAttributeType {
        // Of the link itself where it is one.
        guard let attributes = try? FileManager.default.attributesOfItem(atPath: url.path),
            let kind = attributes[.type] as? FileAttributeType
        else { throw BundleError(.missing, "\(name) is missing. Fetch or export the bundle again.") }
        guard kind == .typeRegular || kind == .typeDirectory else {
            throw BundleError(.escapes, "\(name) is a symbolic link or a special file; a bundle holds plain files only.")
        }
        return kind
    }
}

private func unreadable(_ name: String) -> BundleError {
    BundleError(.missing, "\(name) cannot be read. Fetch or export the bundle again.")
}
