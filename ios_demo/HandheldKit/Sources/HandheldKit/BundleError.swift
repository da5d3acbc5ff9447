/// Why a bundle, a pack or a profile is refused; `description` is for people and says what to do.
public struct BundleError: Error, CustomStringConvertible, Equatable, Sendable {
    public enum Kind: String, Sendable, CaseIterable {
        /// Not there, or not readable.
        case missing
        /// Not JSON, or not of the shape that the format has.
        case malformed
        /// Written by a newer (or much older) handheld.
        case version
        /// A path or a link that leads out of the bundle.
        case escapes
        /// Truncated, grown or altered: size or SHA-256 is not the manifest's.
        case altered
        /// Tensors that do not fit their file, or are not what the manifest says.
        case tensors
    }

    public let kind: Kind
    public let description: String

    public init(_ kind: Kind, _ description: String) {
        self.kind = kind
        self.description = description
    }
}
