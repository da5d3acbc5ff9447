import Foundation

/// A safetensors file with fp32 tensors, mapped into memory; every offset is checked before anything is read.
public struct Safetensors: Sendable {
    /// By name.
    public let shapes: [String: [Int]]
    private let data: Data
    private let ranges: [String: Range<Int>]

    /// Throws `BundleError(.tensors)` for a file that is not safetensors, a tensor that does not lie in it, a size that is
    /// not its shape's, and a dtype other than F32; `.missing` for one that cannot be read.
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
        for member in members where member.key != "__metadata__" {
            let entry = try Self.entry(member, bytes: data.count - start, refuse)
            shapes[member.key] = entry.shape
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
        self.ranges = ranges
        self.data = data
    }

    /// The values of a tensor, row-major, nil where the file has none of that name.
    public func floats(_ name: String) -> [Float]? {
        guard let range = ranges[name] else { return nil }
        return data[range].withUnsafeBytes { raw in
            (0..<range.count / 4).map {
                Float(bitPattern: UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self)))
            }
        }
    }

    /// As in the reference implementation.
    private static let largestHeader: UInt64 = 100_000_000

    private static func entry(
        _ member: JSON.Member, bytes: Int, _ refuse: (String) -> BundleError
    ) throws -> (shape: [Int], offsets: Range<Int>) {
        let faults = Faults()
        let f = Field(json: member.value, place: member.key, faults: faults).object("dtype", "shape", "data_offsets")
        let dtype = f("dtype").text()
        let shape = f("shape").list { $0.integer() }
        let offsets = f("data_offsets").list { $0.integer() }
        guard faults.lines.isEmpty else { throw refuse(faults.lines.joined(separator: "; ")) }
        guard dtype == "F32" else { throw refuse("\(member.key) is \(dtype); F32 is wanted") }
        guard offsets.count == 2, offsets[0] <= offsets[1], offsets[1] <= bytes else {
            throw refuse("\(member.key) does not lie in the file")
        }
        var size = 4
        for extent in shape {
            let (product, overflow) = size.multipliedReportingOverflow(by: extent)
            guard !overflow else { throw refuse("\(member.key) has a shape too large for 64 bits") }
            size = product
        }
        guard size == offsets[1] - offsets[0] else { throw refuse("\(member.key) has a size that is not its shape's") }
        return (shape, offsets[0]..<offsets[1])
    }
}
