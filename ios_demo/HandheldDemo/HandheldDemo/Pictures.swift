import CoreGraphics
import Foundation
import HandheldKit

extension StreamFrames {
    /// One frame as an image of its own.
    func image(_ frame: Int) throws -> CGImage? {
        guard let provider = CGDataProvider(data: Data(try rgba(frame)) as CFData) else { return nil }
        let width = shape[3]
        return CGImage(
            width: width, height: shape[2], bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: 4 * width,
            space: CGColorSpaceCreateDeviceRGB(),
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue), provider: provider,
            decode: nil, shouldInterpolate: true, intent: .defaultIntent)
    }
}
