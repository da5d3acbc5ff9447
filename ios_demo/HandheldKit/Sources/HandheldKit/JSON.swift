/// JSON as the bundle format needs it read: strictly.
///
/// Foundation's decoder takes the last of two equal keys and has no limit of depth that one can state, and a manifest
/// that two readers understand differently is a hole. This one refuses duplicate keys, NaN and infinity, lone
/// surrogates, anything after the value, and nesting below `JSON.deepest` levels.
public indirect enum JSON: Equatable, Sendable {
    case null
    case bool(Bool)
    /// A number without fraction and exponent that fits 64 bits.
    case integer(Int64)
    case number(Double)
    case string(String)
    case array([JSON])
    /// In the order of the text.
    case object([Member])

    public struct Member: Equatable, Sendable {
        public let key: String
        public let value: JSON

        public init(_ key: String, _ value: JSON) {
            self.key = key
            self.value = value
        }
    }

    /// Levels of arrays and objects that a text may nest.
    public static let deepest = 64

    /// Parses a whole text. Throws `JSONError` with the place, in bytes, at which it stops being JSON.
    public static func parse(_ bytes: [UInt8]) throws -> JSON {
        var parser = JSONParser(bytes)
        return try parser.document()
    }

    /// As text, indented by one space a level like the profiles that `handheld` writes. Numbers keep their value.
    public var text: String {
        var text = ""
        write(to: &text, indent: "\n")
        return text
    }

    private func write(to text: inout String, indent: String) {
        switch self {
        case .null: text += "null"
        case .bool(let value): text += value ? "true" : "false"
        case .integer(let value): text += "\(value)"
        case .number(let value): text += "\(value)"
        case .string(let value): text += Self.quoted(value)
        case .array(let items):
            let deeper = indent + " "
            for (place, item) in items.enumerated() {
                text += (place == 0 ? "[" : ",") + deeper
                item.write(to: &text, indent: deeper)
            }
            text += items.isEmpty ? "[]" : indent + "]"
        case .object(let members):
            let deeper = indent + " "
            for (place, member) in members.enumerated() {
                text += (place == 0 ? "{" : ",") + deeper + Self.quoted(member.key) + ": "
                member.value.write(to: &text, indent: deeper)
            }
            text += members.isEmpty ? "{}" : indent + "}"
        }
    }

    private static func quoted(_ text: String) -> String {
        var quoted = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": quoted += "\\\""
            case "\\": quoted += "\\\\"
            case "\u{0}"..<" ":
                let digits = String(scalar.value, radix: 16)
                quoted += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: quoted.unicodeScalars.append(scalar)
            }
        }
        return quoted + "\""
    }

    /// The value of a key, nil where this is no object or has no such key.
    public subscript(_ key: String) -> JSON? {
        guard case .object(let members) = self else { return nil }
        return members.first { $0.key == key }?.value
    }
}

public struct JSONError: Error, CustomStringConvertible, Equatable {
    public let offset: Int
    public let reason: String
    public var description: String { "\(reason) (byte \(offset))" }
}

private struct JSONParser {
    private let bytes: [UInt8]
    private var at = 0
    private var depth = 0

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
    }

    mutating func document() throws -> JSON {
        let parsed = try value()
        skipSpace()
        guard at == bytes.count else { throw failure("there is more after the end of the value") }
        return parsed
    }

    private mutating func value() throws -> JSON {
        skipSpace()
        guard let byte = peek() else { throw failure("the text ends where a value is wanted") }
        switch byte {
        case UInt8(ascii: "{"): return try nested { try $0.object() }
        case UInt8(ascii: "["): return try nested { try $0.array() }
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func nested(_ body: (inout JSONParser) throws -> JSON) throws -> JSON {
        depth += 1
        guard depth <= JSON.deepest else { throw failure("nested too deeply, over \(JSON.deepest) levels") }
        at += 1
        let parsed = try body(&self)
        depth -= 1
        return parsed
    }

    private mutating func object() throws -> JSON {
        var members: [JSON.Member] = []
        var seen: Set<String> = []
        skipSpace()
        if take("}") { return .object([]) }
        repeat {
            skipSpace()
            guard peek() == UInt8(ascii: "\"") else { throw failure("a key in quotes is wanted") }
            let key = try string()
            guard seen.insert(key).inserted else { throw failure("keys given twice: \(key)") }
            skipSpace()
            guard take(":") else { throw failure("a colon is wanted") }
            members.append(JSON.Member(key, try value()))
            skipSpace()
        } while take(",")
        guard take("}") else { throw failure("a comma or } is wanted") }
        return .object(members)
    }

    private mutating func array() throws -> JSON {
        var items: [JSON] = []
        skipSpace()
        if take("]") { return .array([]) }
        repeat {
            items.append(try value())
            skipSpace()
        } while take(",")
        guard take("]") else { throw failure("a comma or ] is wanted") }
        return .array(items)
    }

    private mutating func string() throws -> String {
        at += 1
        var text: [UInt8] = []
        while let byte = peek() {
            at += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let string = String(validatingUTF8Bytes: text) else { throw failure("text that is not UTF-8") }
                return string
            case UInt8(ascii: "\\"):
                text += try escape()
            case 0..<0x20:
                throw failure("a control character in text")
            default:
                text.append(byte)
            }
        }
        throw failure("the text ends within quotes")
    }

    private mutating func escape() throws -> [UInt8] {
        guard let byte = peek() else { throw failure("the text ends within quotes") }
        at += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
        case UInt8(ascii: "b"): return [8]
        case UInt8(ascii: "f"): return [12]
        case UInt8(ascii: "n"): return [10]
        case UInt8(ascii: "r"): return [13]
        case UInt8(ascii: "t"): return [9]
        case UInt8(ascii: "u"): return Array(String(Character(try unicode())).utf8)
        default: throw failure("an escape that JSON does not have")
        }
    }

    private mutating func unicode() throws -> Unicode.Scalar {
        let first = try fourHexDigits()
        if let scalar = Unicode.Scalar(first) { return scalar }
        guard first < 0xDC00, take("\\"), take("u") else { throw failure("half of a surrogate pair") }
        let second = try fourHexDigits()
        guard (0xDC00...0xDFFF).contains(second),
            let scalar = Unicode.Scalar(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))
        else { throw failure("half of a surrogate pair") }
        return scalar
    }

    private mutating func fourHexDigits() throws -> UInt32 {
        guard at + 4 <= bytes.count else { throw failure("four hexadecimal digits are wanted") }
        var value: UInt32 = 0
        for byte in bytes[at..<at + 4] {
            guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue, byte < 0x80 else {
                throw failure("four hexadecimal digits are wanted")
            }
            value = value << 4 | UInt32(digit)
        }
        at += 4
        return value
    }

    private mutating func number() throws -> JSON {
        let start = at
        _ = take("-")
        if !take("0") { try digits() }
        var whole = true
        if take(".") {
            whole = false
            try digits()
        }
        if take("e") || take("E") {
            whole = false
            if !take("+") { _ = take("-") }
            try digits()
        }
        let text = String(decoding: bytes[start..<at], as: UTF8.self)
        if whole, let integer = Int64(text) { return .integer(integer) }
        guard let number = Double(text), number.isFinite else { throw failure("a number too large for 64 bits") }
        return .number(number)
    }

    private mutating func digits() throws {
        let start = at
        while let byte = peek(), (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { at += 1 }
        guard at > start else { throw failure("a value is wanted") }
    }

    private mutating func word(_ text: String, _ value: JSON) throws -> JSON {
        guard bytes[at...].starts(with: text.utf8) else { throw failure("a value is wanted") }
        at += text.utf8.count
        return value
    }

    private func peek() -> UInt8? {
        at < bytes.count ? bytes[at] : nil
    }

    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard peek() == UInt8(ascii: character) else { return false }
        at += 1
        return true
    }

    private mutating func skipSpace() {
        while let byte = peek(), byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { at += 1 }
    }

    private func failure(_ reason: String) -> JSONError {
        JSONError(offset: at, reason: reason)
    }
}

extension String {
    /// Nil for bytes that are not UTF-8, where `String(decoding:)` would put replacement characters.
    init?(validatingUTF8Bytes bytes: [UInt8]) {
        let text = String(decoding: bytes, as: UTF8.self)
        guard text.utf8.elementsEqual(bytes) else { return nil }
        self = text
    }
}
