import Foundation

/// Reads a JSON tree field by field and collects every fault, so that a person sees all of them at once.
final class Faults {
    private(set) var lines: [String] = []

    func add(_ place: String, _ what: String) {
        lines.append("\(place): \(what)")
    }
}

/// One value with its place in the text, for messages.
struct Field {
    let json: JSON?
    let place: String
    let faults: Faults

    /// An object's fields by key; a key that is neither among `keys` nor `optional` is a fault, and so is one of `keys`
    /// that is missing.
    func object(_ keys: String..., optional: Set<String> = []) -> (String) -> Field {
        if case .object(let members)? = json {
            for member in members where !keys.contains(member.key) && !optional.contains(member.key) {
                faults.add(path(member.key), "unknown key")
            }
            for key in keys where json?[key] == nil { faults.add(path(key), "missing") }
        } else {
            wanted("an object")
        }
        return { Field(json: json?[$0], place: path($0), faults: faults) }
    }

    /// An object with any keys.
    func map<T>(_ read: (Field) -> T) -> [String: T] {
        guard case .object(let members)? = json else { return wanted("an object", [:]) }
        return Dictionary(uniqueKeysWithValues: members.map {
            ($0.key, read(Field(json: $0.value, place: path($0.key), faults: faults)))
        })
    }

    func list<T>(least: Int = 0, _ read: (Field) -> T) -> [T] {
        guard case .array(let items)? = json, items.count >= least else {
            wanted(least > 0 ? "a list of at least \(least) items" : "a list")
            return []
        }
        return items.enumerated().map { read(Field(json: $1, place: "\(place)[\($0)]", faults: faults)) }
    }

    func optional<T>(_ read: (Field) -> T) -> T? {
        json == .null ? nil : read(self)
    }

    /// The value of an optional key.
    func present<T>(_ read: (Field) -> T) -> T? {
        json == nil ? nil : read(self)
    }

    func text(empty: Bool = false) -> String {
        guard case .string(let text)? = json, empty || !text.isEmpty else { return wanted("text", "") }
        return text
    }

    /// Text made of the given characters.
    func text(of allowed: (Character) -> Bool, _ name: String) -> String {
        guard case .string(let text)? = json, !text.isEmpty, text.allSatisfy(allowed) else { return wanted(name, "") }
        return text
    }

    func choice<T: RawRepresentable & CaseIterable>(_ type: T.Type) -> T? where T.RawValue == String {
        guard case .string(let text)? = json, let value = T(rawValue: text) else {
            return wanted(T.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: " or "), nil)
        }
        return value
    }

    func integer(least: Int64 = 0, most: Int64 = .max) -> Int {
        guard case .integer(let value)? = json, value >= least, value <= most, let fits = Int(exactly: value) else {
            return wanted("a whole number of at least \(least)" + (most < .max ? " and at most \(most)" : ""), Int(least))
        }
        return fits
    }

    func number(least: Double = -.infinity) -> Double {
        switch json {
        case .integer(let value)? where Double(value) >= least: return Double(value)
        case .number(let value)? where value >= least: return value
        default: return wanted(least == -.infinity ? "a finite number" : "a finite number of at least \(least)", 0)
        }
    }

    func bool() -> Bool {
        guard case .bool(let value)? = json else { return wanted("true or false", false) }
        return value
    }

    /// `2026-11-23T18:00:00Z`.
    func utcTime() -> String {
        let pattern = "dddd-dd-ddTdd:dd:ddZ"
        guard case .string(let text)? = json, text.count == pattern.count,
            zip(text, pattern).allSatisfy({ $1 == "d" ? $0.isASCII && $0.isNumber : $0 == $1 })
        else { return wanted("a UTC time such as 2026-11-23T18:00:00Z", "") }
        return text
    }

    /// Lowercase letters and digits with single hyphens between them.
    func slug() -> String {
        guard case .string(let text)? = json,
            text.split(separator: "-", omittingEmptySubsequences: false).allSatisfy({ part in
                !part.isEmpty && part.utf8.allSatisfy { (97...122).contains($0) || (48...57).contains($0) }
            })
        else { return wanted("lowercase letters, digits and single hyphens", "") }
        return text
    }

    func sha256() -> String {
        let text = text(of: { $0.isASCII && $0.isHexDigit && !$0.isUppercase }, "a SHA-256 in lowercase hex digits")
        return text.count == 64 || text.isEmpty ? text : wanted("a SHA-256 in 64 lowercase hex digits", "")
    }

    /// A path that stays below the folder that it is relative to.
    func relativePath() -> String {
        guard case .string(let text)? = json, isContained(text) else {
            return wanted("a path inside the bundle, relative, with / between parts and without '..'", "")
        }
        return text
    }

    /// Any object: what only people and tools read.
    func free() -> JSON {
        guard case .object? = json else { return wanted("an object", .null) }
        return json ?? .null
    }

    private func path(_ key: String) -> String {
        place.isEmpty ? key : "\(place).\(key)"
    }

    private func wanted(_ what: String) {
        if json != nil { faults.add(place, "wanted \(what)") }  // a missing key was reported already
    }

    private func wanted<T>(_ what: String, _ placeholder: T) -> T {
        wanted(what)
        return placeholder
    }
}

/// Whether a relative path names something below its folder, in the one spelling that the format allows.
func isContained(_ path: String) -> Bool {
    let parts = path.split(separator: "/", omittingEmptySubsequences: false)
    let printable = path.unicodeScalars.allSatisfy { !$0.properties.isNoncharacterCodePoint && !isControl($0) }
    return printable && !path.contains("\\") && parts.allSatisfy { !$0.isEmpty && $0 != "." && $0 != ".." }
}

private func isControl(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator: return true
    case .spaceSeparator: return scalar != " "
    default: return false
    }
}
