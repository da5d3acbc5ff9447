import Foundation

/// Byte-level BPE as `tokenizer.json` describes it (the format of Hugging Face's tokenizers), which is what SmolLM2,
/// Llama 3, Qwen2 and OPT use. A file with anything else in it is refused by name rather than read approximately.
public struct Tokenizer: Sendable {
    private let ids: [String: UInt32]
    private let texts: [UInt32: String]
    private let ranks: [Pair: Int]
    /// Tokens that are found in the text before anything else, the longest first.
    private let added: [(text: String, id: UInt32)]
    private let special: Set<UInt32>
    private let splits: [Split]

    private struct Pair: Hashable {
        let left: String
        let right: String
    }

    /// Throws `BundleError`: `.missing` for a file that cannot be read, `.malformed` for one that is not understood.
    public init(contentsOf url: URL) throws {
        guard let data = try? Data(contentsOf: url) else {
            throw BundleError(.missing, "\(url.lastPathComponent) cannot be read. Pack the model again.")
        }
        do {
            try self.init(try JSON.parse([UInt8](data)))
        } catch let error as JSONError {
            throw BundleError(.malformed, "\(url.lastPathComponent) is not valid JSON: \(error).")
        }
    }

    private init(_ json: JSON) throws {
        let model = json["model"]
        guard model?["type"] == .string("BPE"), case .object(let vocabulary)? = model?["vocab"],
            case .array(let merges)? = model?["merges"]
        else { throw unsupported("a model that is not BPE") }
        guard json["normalizer"].isNull || json["normalizer"]?["type"] == .string("NFC") else {
            throw unsupported("a normalizer")
        }
        var ids: [String: UInt32] = [:]
        for entry in vocabulary {
            guard case .integer(let id) = entry.value, let id = UInt32(exactly: id) else { throw unsupported("ids") }
            ids[entry.key] = id
        }
        var ranks: [Pair: Int] = [:]
        for (rank, merge) in merges.enumerated() { ranks[try Self.pair(merge)] = rank }
        var added: [(text: String, id: UInt32)] = []
        var special: Set<UInt32> = []
        if case .array(let tokens)? = json["added_tokens"] {
            for token in tokens {
                guard case .string(let text)? = token["content"], case .integer(let id)? = token["id"],
                    let id = UInt32(exactly: id)
                else { throw unsupported("added tokens") }
                added.append((text, id))
                if token["special"] == .bool(true) { special.insert(id) }
            }
        }
        self.ids = ids
        self.ranks = ranks
        self.special = special
        self.added = added.sorted { $0.text.utf8.count > $1.text.utf8.count }
        splits = try Split.list(json["pre_tokenizer"])
        texts = Dictionary(ids.map { ($0.value, $0.key) } + added.map { ($0.id, $0.text) }) { $1 }
    }

    /// The id of a token by its text, such as "<|im_end|>".
    public func id(_ token: String) -> UInt32? {
        added.first { $0.text == token }?.id ?? ids[token]
    }

    /// Ids of a text; added tokens that are written out in it count as such. Nothing is put before or after it.
    public func encode(_ text: String) -> [UInt32] {
        guard let (range, id) = firstAdded(text) else { return pieces(text).flatMap(merge) }
        let before = String(text[..<range.lowerBound]), after = String(text[range.upperBound...])
        return pieces(before).flatMap(merge) + [id] + encode(after)
    }

    /// The text of ids, without special tokens. An id's bytes may be half a character: decode all ids of a text at once.
    public func decode(_ ids: [UInt32]) -> String {
        var bytes: [UInt8] = []
        for id in ids where !special.contains(id) {
            guard let text = texts[id] else { continue }
            let known = text.unicodeScalars.map { byteOfScalar[$0] }
            bytes += known.contains(nil) ? Array(text.utf8) : known.compactMap { $0 }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    private func firstAdded(_ text: String) -> (Range<String.Index>, UInt32)? {
        let found = added.compactMap { token in text.range(of: token.text, options: .literal).map { ($0, token.id) } }
        // At one place the longest wins, and `added` has that order.
        return found.min { $0.0.lowerBound < $1.0.lowerBound }
    }

    private func pieces(_ text: String) -> [String] {
        splits.reduce(text.isEmpty ? [] : [text]) { pieces, split in pieces.flatMap(split.apply) }
    }

    /// Joins the pair of the lowest rank until there is none.
    private func merge(_ piece: String) -> [UInt32] {
        var parts = piece.utf8.map { String(scalarOfByte[Int($0)]) }
        while parts.count > 1 {
            let ranked = (0..<parts.count - 1).compactMap { at in
                ranks[Pair(left: parts[at], right: parts[at + 1])].map { (rank: $0, at: at) }
            }
            guard let best = ranked.min(by: { ($0.rank, $0.at) < ($1.rank, $1.at) }) else { break }
            parts[best.at] += parts.remove(at: best.at + 1)
        }
        return parts.compactMap { ids[$0] }
    }

    private static func pair(_ merge: JSON) throws -> Pair {
        switch merge {
        case .string(let text):
            let halves = text.split(separator: " ", omittingEmptySubsequences: false).map(String.init)
            if halves.count == 2 { return Pair(left: halves[0], right: halves[1]) }
        case .array(let halves):
            if halves.count == 2, case .string(let left) = halves[0], case .string(let right) = halves[1] {
                return Pair(left: left, right: right)
            }
        default: break
        }
        throw unsupported("merges")
    }
}

/// A way to cut a text into pieces that are encoded each on its own. Nothing is lost between the pieces.
private struct Split: Sendable {
    let pattern: String

    /// What stands between matches is a piece too.
    func apply(_ text: String) -> [String] {
        guard let regex = try? NSRegularExpression(pattern: pattern) else { return [text] }
        var pieces: [String] = []
        var end = text.startIndex
        for match in regex.matches(in: text, range: NSRange(text.startIndex..., in: text)) {
            guard let range = Range(match.range, in: text), !range.isEmpty else { continue }
            if end < range.lowerBound { pieces.append(String(text[end..<range.lowerBound])) }
            pieces.append(String(text[range]))
            end = range.upperBound
        }
        return end < text.endIndex ? pieces + [String(text[end...])] : pieces
    }

    static func list(_ json: JSON?) throws -> [Split] {
        switch json?["type"] {
        case .string("Sequence")?:
            guard case .array(let steps)? = json?["pretokenizers"] else { throw unsupported("pre-tokenizers") }
            return try steps.flatMap(list)
        case .string("Digits")?:
            return [Split(pattern: json?["individual_digits"] == .bool(true) ? "\\p{N}" : "\\p{N}+")]
        case .string("ByteLevel")?:
            guard json?["add_prefix_space"] != .bool(true) else { throw unsupported("a prefix space") }
            return json?["use_regex"] == .bool(false) ? [] : [Split(pattern: byteLevelPattern)]
        case .string("Split")?:
            guard json?["behavior"] == .string("Isolated"), json?["invert"] != .bool(true),
                case .string(let pattern)? = json?["pattern"]?["Regex"],
                (try? NSRegularExpression(pattern: pattern)) != nil
            else { throw unsupported("a way to split") }
            return [Split(pattern: pattern)]
        default: throw unsupported("a pre-tokenizer")
        }
    }

    /// GPT-2's: contractions, words, numbers and punctuation with the space before them, then what space is left.
    private static let byteLevelPattern =
        #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#
}

private func unsupported(_ what: String) -> BundleError {
    BundleError(.malformed, "tokenizer.json has \(what) that this app does not know; byte-level BPE is what it reads.")
}

extension Optional where Wrapped == JSON {
    fileprivate var isNull: Bool { self == nil || self == .some(.null) }
}

/// GPT-2's printable stand-in for each byte: itself where it is printable in Latin-1, else the next from U+0100 on.
private let scalarOfByte: [Unicode.Scalar] = {
    var next: UInt32 = 0x100
    return (0..<256).map { (byte: UInt32) in
        let printable = (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || (0xAE...0xFF).contains(byte)
        if printable { return Unicode.Scalar(byte)! }
        defer { next += 1 }
        return Unicode.Scalar(next)!
    }
}()

private let byteOfScalar: [Unicode.Scalar: UInt8] = Dictionary(
    uniqueKeysWithValues: scalarOfByte.enumerated().map { ($1, UInt8($0)) })
