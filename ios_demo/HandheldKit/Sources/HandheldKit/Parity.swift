import Foundation

/// How far an output is from the golden one, and whether the artefact's own tolerance allows it.
public struct Parity: Equatable, Sendable {
    /// Largest absolute difference, in output units.
    public let maxAbsError: Double
    /// With the golden range as peak; infinite for equal outputs.
    public let psnrDB: Double
    /// What breaks the tolerance, for people; nil where nothing does.
    public let fault: String?

    public var passed: Bool { fault == nil }

    /// Throws `.tensors` for outputs of different sizes, or none at all.
    public init(
        of output: [Float], against golden: [Float], range: ClosedRange<Double>?, tolerance: Manifest.Tolerance
    ) throws {
        guard output.count == golden.count, !golden.isEmpty else {
            throw BundleError(.tensors, "\(output.count) values came out, \(golden.count) golden ones are in the bundle.")
        }
        var worst = 0.0
        var squares = 0.0
        for (a, b) in zip(output, golden) {
            let difference = abs(Double(a) - Double(b))
            worst = difference > worst || difference.isNaN ? difference : worst
            squares += difference * difference
        }
        let peak = range.map { $0.upperBound - $0.lowerBound } ?? golden.reduce(0) { max($0, abs(Double($1))) }
        maxAbsError = worst
        psnrDB = squares == 0 ? .infinity : 10 * log10(peak * peak * Double(golden.count) / squares)
        fault = Self.fault(worst, psnrDB, tolerance)
    }

    private static func fault(_ worst: Double, _ psnr: Double, _ tolerance: Manifest.Tolerance) -> String? {
        // Negated comparisons, so that NaN breaks every limit.
        if let limit = tolerance.maxAbs, !(worst <= limit) {
            return "The largest error, \(worst), is above the tolerance, \(limit)."
        }
        if let limit = tolerance.minPSNRdB, !(psnr >= limit) {
            return "The PSNR, \(psnr) dB, is below the tolerance, \(limit) dB."
        }
        return nil
    }
}
