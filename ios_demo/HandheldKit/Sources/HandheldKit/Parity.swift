import Foundation

/// How far an output is from the golden one. Raw figures only: what they mean, the tolerance and `handheld` say.
public struct Parity: Equatable, Sendable {
    public let output: String
    /// As in the golden file; nil is the first shape.
    public let method: String?
    /// Nil exactly where the output holds NaN or infinity.
    public let figures: Figures?

    public struct Figures: Equatable, Sendable {
        /// Largest absolute difference, in output units.
        public let maxAbsError: Double
        /// Over all elements.
        public let meanSquaredError: Double
        /// What a PSNR is against: the width of the output's nominal range, or of the golden values where it has none.
        public let peak: Double

        /// Infinite for equal outputs.
        public var psnrDB: Double {
            meanSquaredError == 0 ? .infinity : 10 * log10(peak * peak / meanSquaredError)
        }
    }

    /// Throws `.tensors` for outputs of different sizes, or none at all.
    public init(
        of output: [Float], against golden: [Float], name: String, method: String? = nil, range: ClosedRange<Double>?
    ) throws {
        guard output.count == golden.count, let first = golden.first else {
            throw BundleError(.tensors, "\(output.count) values came out, \(golden.count) golden ones are in the bundle.")
        }
        self.output = name
        self.method = method
        var worst = 0.0, squares = 0.0
        var low = Double(first), high = Double(first)
        for (a, b) in zip(output, golden) {
            let difference = abs(Double(a) - Double(b))
            worst = max(worst, difference)
            squares += difference * difference
            low = min(low, Double(b))
            high = max(high, Double(b))
        }
        let peak = range.map { $0.upperBound - $0.lowerBound } ?? high - low
        // A sum of squares is finite only where every difference is.
        figures = squares.isFinite
            ? Figures(maxAbsError: worst, meanSquaredError: squares / Double(golden.count), peak: peak) : nil
    }

    init(output: String, method: String?, figures: Figures?) {
        self.output = output
        self.method = method
        self.figures = figures
    }

    /// Which limit of a tolerance is broken, for people; nil where none is.
    public func fault(_ tolerance: Manifest.Tolerance) -> String? {
        guard let figures else { return "The output holds NaN or infinity." }
        if let limit = tolerance.maxAbs, figures.maxAbsError > limit {
            return "The largest error, \(figures.maxAbsError), is above the tolerance, \(limit)."
        }
        if let limit = tolerance.minPSNRdB, figures.psnrDB < limit {
            return "The PSNR, \(figures.psnrDB) dB, is below the tolerance, \(limit) dB."
        }
        return nil
    }
}
