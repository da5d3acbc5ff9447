// The part of Uniform Type Identifiers that HandheldDemo uses, for type checks where it is not installed.
public struct UTType: Sendable {
    public static let folder = UTType(), data = UTType()
}
