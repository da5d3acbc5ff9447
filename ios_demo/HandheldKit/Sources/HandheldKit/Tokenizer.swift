import Foundation

/// Byte-level BPE as `tokenizer.json` describes it (the format of Hugging Face's tokenizers), which is what SmolLM2,
/// Llama 3, Qwen2 and OPT use. A file with anything else in it is refused by name rather than read approximately.
public struct Tokenizer: Sendable {
    private let ids: [String: UInt32]
    private let texts: [UInt32: String]
    private let ranks: [Pair: Int]
    private let special: [String: UInt32]
    private let specialIDs: Set<UInt32>
    private let splits: [Split]
    /// Whether a piece that is a token is taken whole, without merges.
    private let wholeWords: Bool
    /// What a text begins with.
    private let start: [UInt32]

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
        guard json["normalizer"].isNull else { throw unsupported("a normalizer") }
        var ids: [String: UInt32] = [:]
        for entry in vocabulary {
            guard case .integer(let id) = entry.value, let id = UInt32(exactly: id) else { throw unsupported("ids") }
            ids[entry.key] = id
        }
        var ranks: [Pair: Int] = [:]
        for (rank, merge) in merges.enumerated() { ranks[try Self.pair(merge)] = rank }
        var special: [String: UInt32] = [:]
        if case .array(let tokens)? = json["added_tokens"] {
            for token in tokens {
                guard case .string(let text)? = token["content"], case .integer(let id)? = token["id"],
                    let id = UInt32(exactly: id)
                else { throw unsupported("added tokens") }
                special[text] = id
            }
        }
        self.ids = ids
        self.ranks = ranks
        self.special = special
        specialIDs = Set(special.values)
        splits = try Split.list(json["pre_tokenizer"])
        wholeWords = model?["ignore_merges"] == .bool(true)
        start = try Self.start(json["post_processor"])
        texts = Dictionary(ids.map { ($0.value, $0.key) }) { first, _ in first }
    }

    /// Ids of a text; special tokens that are written out in it are plain text, so that nobody can forge a turn of a chat.
    public func encode(_ text: String) -> [UInt32] {
        pieces(text).flatMap(merge)
    }

    /// What a plain text begins with: a begin-of-text token where the model wants one, and the text's ids.
    public func prompt(_ text: String) -> [UInt32] {
        start + encode(text)
    }

    /// A person's message and the opening of the answer, in ChatML where the model has its tokens; else the text as it is.
    /// `first` is whether the conversation begins with it.
    public func chat(_ message: String, first: Bool) -> [UInt32] {
        guard let begin = special["<|im_start|>"], let end = special["<|im_end|>"] else {
            return first ? prompt(message) : encode(message)
        }
        let turn = [begin] + encode("user\n\(message)") + [end] + encode("\n") + [begin] + encode("assistant\n")
        return first ? turn : encode("\n") + turn
    }

    /// The text of ids, without special tokens. An id's bytes may be half a letter: decode all ids of a text at once.
    public func decode(_ ids: [UInt32]) -> String {
        let letters = ids.filter { !specialIDs.contains($0) }.compactMap { texts[$0] }.joined().unicodeScalars
        return String(decoding: letters.compactMap { byteOfScalar[$0] }, as: UTF8.self)
    }

    private func pieces(_ text: String) -> [String] {
        splits.reduce(text.isEmpty ? [] : [text]) { pieces, split in pieces.flatMap(split.apply) }
    }

    /// Joins the pair of the lowest rank until there is none.
    private func merge(_ piece: String) -> [UInt32] {
        let letters = String(String.UnicodeScalarView(piece.utf8.map { scalarOfByte[Int($0)] }))
        if wholeWords, let id = ids[letters] { return [id] }
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

    /// The special tokens that a template puts before a single text; one that puts any behind it is refused.
    private static func start(_ json: JSON?) throws -> [UInt32] {
        switch json?["type"] {
        case nil where json.isNull, .string("ByteLevel")?: return []
        case .string("Sequence")?:
            guard case .array(let steps)? = json?["processors"] else { throw unsupported("a post-processor") }
            return try steps.flatMap(start)
        case .string("TemplateProcessing")?:
            guard case .array(let template)? = json?["single"], let last = template.last, last["Sequence"] != nil else {
                throw unsupported("a template")
            }
            return try template.dropLast().flatMap { piece -> [UInt32] in
                guard case .string(let name)? = piece["SpecialToken"]?["id"],
                    case .array(let ids)? = json?["special_tokens"]?[name]?["ids"]
                else { throw unsupported("a template") }
                return ids.compactMap { id in
                    guard case .integer(let id) = id else { return nil }
                    return UInt32(exactly: id)
                }
            }
        default: throw unsupported("a post-processor")
        }
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
