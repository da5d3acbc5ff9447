import Foundation

/// A safetensors file of fp32, fp16, bf16 and bytes, mapped into memory; every offset is checked before anything is read.
public struct Safetensors: Sendable {
    /// By name.
    public let shapes: [String: [Int]]
    /// What its writer says about it.
    public let metadata: [String: String]
    private let dtypes: [String: DType]
    private let data: Data
    private let ranges: [String: Range<Int>]

    private enum DType: String {
        case float32 = "F32"
        case float16 = "F16"
        case bfloat16 = "BF16"
        case uint8 = "U8"

        var bytes: Int { self == .float32 ? 4 : self == .uint8 ? 1 : 2 }
    }

    /// Throws `BundleError(.tensors)` for a file that is not safetensors, a tensor that does not lie in it, a size that is
    /// not its shape's, and a dtype other than F32, F16, BF16 and U8; `.missing` for one that cannot be read.
    public init(contentsOf url: URL, name: String) throws {
        guard let data = try? Data(contentsOf: url, options: .alwaysMapped) else {
            throw BundleError(.missing, "\(name) cannot be read. Fetch or export the bundle again.")
        }
        func refuse(_ why: String) -> BundleError {
            BundleError(.tensors, "\(name) is not safetensors: \(why). Fetch or export the bundle again.")
        }
        guard data.count >= 8 else { throw refuse("\(data.count) bytes") }
        let length = data.prefix(8).enumerated().reduce(UInt64(0)) { $0 | UInt64($1.element) << (8 * $1.offset) }
        guard length <= UInt64(data.count - 8), length <= Self.largestHeader else {
            throw refuse("a header of \(length) bytes in a file of \(data.count)")
        }
        let start = 8 + Int(length)
        let header: JSON
        do {
            header = try JSON.parse([UInt8](data[8..<start]))
        } catch {
            throw refuse("\(error)")
        }
        guard case .object(let members) = header else { throw refuse("its header is no object") }
        var shapes: [String: [Int]] = [:]
        var ranges: [String: Range<Int>] = [:]
        var dtypes: [String: DType] = [:]
        var metadata: [String: String] = [:]
        for member in members {
            if member.key == "__metadata__" {
                metadata = try Self.metadata(member, refuse)
                continue
            }
            let entry = try Self.entry(member, bytes: data.count - start, refuse)
            shapes[member.key] = entry.shape
            dtypes[member.key] = entry.dtype
            ranges[member.key] = start + entry.offsets.lowerBound..<start + entry.offsets.upperBound
        }
        // The format allows neither holes nor overlaps, in which something could hide.
        var end = start
        for range in ranges.values.sorted(by: { ($0.lowerBound, $0.upperBound) < ($1.lowerBound, $1.upperBound) }) {
            guard range.lowerBound == end else { throw refuse("its tensors do not lie one after the other") }
            end = range.upperBound
        }
        guard end == data.count else { throw refuse("its tensors end before the file") }
        self.shapes = shapes
        self.metadata = metadata
        self.dtypes = dtypes
        self.ranges = ranges
        self.data = data
    }

    /// The values of a tensor, row-major, nil where the file has none of that name.
    public func floats(_ name: String) -> [Float]? {
        guard let range = ranges[name], let dtype = dtypes[name] else { return nil }
        return data[range].withUnsafeBytes { raw in
            (0..<range.count / dtype.bytes).map { index in
                if dtype == .uint8 { return Float(raw[index]) }
                if dtype == .float32 {
                    return Float(bitPattern: UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: 4 * index, as: UInt32.self)))
                }
                let bits = UInt16(littleEndian: raw.loadUnaligned(fromByteOffset: 2 * index, as: UInt16.self))
                return dtype == .float16 ? float(bits: bits) : Float(bitPattern: UInt32(bits) << 16)
            }
        }
    }

    /// The dtype of a tensor as manifests name it; nil where they have none such, as for bf16.
    func dtype(_ name: String) -> Manifest.OutputDType? {
        switch dtypes[name] {
        case .float32: return .float32
        case .float16: return .float16
        case .uint8: return .uint8
        default: return nil
        }
    }

    /// As in the reference implementation.
    private static let largestHeader: UInt64 = 100_000_000

    private static func metadata(_ member: JSON.Member, _ refuse: (String) -> BundleError) throws -> [String: String] {
        let faults = Faults()
        let found = Field(json: member.value, place: member.key, faults: faults).map { $0.text(empty: true) }
        guard faults.lines.isEmpty else { throw refuse(faults.lines.joined(separator: "; ")) }
        return found
    }

    private static func entry(
        _ member: JSON.Member, bytes: Int, _ refuse: (String) -> BundleError
    ) throws -> (shape: [Int], dtype: DType, offsets: Range<Int>) {
        let faults = Faults()
        let f = Field(json: member.value, place: member.key, faults: faults).object("dtype", "shape", "data_offsets")
        let named = f("dtype").text()
        let shape = f("shape").list { $0.integer() }
        let offsets = f("data_offsets").list { $0.integer() }
        guard faults.lines.isEmpty else { throw refuse(faults.lines.joined(separator: "; ")) }
        guard let dtype = DType(rawValue: named) else {
            throw refuse("\(member.key) is \(named); F32, F16, BF16 or U8 is wanted")
        }
        guard offsets.count == 2, offsets[0] <= offsets[1], offsets[1] <= bytes else {
            throw refuse("\(member.key) does not lie in the file")
        }
        var size = dtype.bytes
        for extent in shape {
            let (product, overflow) = size.multipliedReportingOverflow(by: extent)
            guard !overflow else { throw refuse("\(member.key) has a shape too large for 64 bits") }
            size = product
        }
        guard size == offsets[1] - offsets[0] else { throw refuse("\(member.key) has a size that is not its shape's") }
        return (shape, dtype, offsets[0]..<offsets[1])
    }
}
