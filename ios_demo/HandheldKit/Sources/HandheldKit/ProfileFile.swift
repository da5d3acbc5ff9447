import Foundation

extension Profile {
    /// Writes the profile, whole or not at all.
    public func write(to file: URL) throws {
        try Data((json.text + "\n").utf8).write(to: file, options: .atomic)
    }

    /// Now, as the format writes it.
    public static var timestamp: String {
        let formatter = ISO8601DateFormatter()
        formatter.timeZone = TimeZone(identifier: "UTC")
        return formatter.string(from: Date())
    }

    /// What measured, by name: this library and the language that it was compiled from.
    public static var software: [String: String] {
        #if swift(>=6.0)
            return ["HandheldKit": version, "swift": "6"]
        #else
            return ["HandheldKit": version, "swift": "5"]
        #endif
    }

    private static let version = "0.1.0"
}
