import CoreGraphics
import HandheldKit
import SwiftUI

/// Loops through a clip's frames.
struct FramePlayer: View {
    let images: [CGImage]
    var framesPerSecond = 24.0

    var body: some View {
        TimelineView(.periodic(from: .now, by: 1 / framesPerSecond)) { context in
            if images.isEmpty {
                Color.black.aspectRatio(1, contentMode: .fit)
            } else {
                let place = Int(context.date.timeIntervalSinceReferenceDate * framesPerSecond) % images.count
                Image(decorative: images[place], scale: 1).resizable().scaledToFit()
            }
        }
    }
}

extension Frames {
    /// Every frame as an image of its own.
    func images() -> [CGImage] {
        (0..<count).compactMap { frame in
            guard let provider = CGDataProvider(data: Data(rgba(frame)) as CFData) else { return nil }
            return CGImage(
                width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: 4 * width,
                space: CGColorSpaceCreateDeviceRGB(),
                bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue), provider: provider,
                decode: nil, shouldInterpolate: true, intent: .defaultIntent)
        }
    }
}
