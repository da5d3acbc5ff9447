// The part of Core Graphics that HandheldDemo uses, for type checks where it is not installed.
import Foundation

public typealias CFData = Data
public final class CGDataProvider { public init?(data: CFData) {} }
public final class CGColorSpace {}
public func CGColorSpaceCreateDeviceRGB() -> CGColorSpace { fatalError() }
public enum CGImageAlphaInfo: UInt32 { case noneSkipLast = 5 }
public struct CGBitmapInfo { public init(rawValue: UInt32) {} }
public enum CGColorRenderingIntent { case defaultIntent }
public final class CGImage: Hashable {
    public init?(
        width: Int, height: Int, bitsPerComponent: Int, bitsPerPixel: Int, bytesPerRow: Int, space: CGColorSpace,
        bitmapInfo: CGBitmapInfo, provider: CGDataProvider, decode: UnsafePointer<CGFloat>?, shouldInterpolate: Bool,
        intent: CGColorRenderingIntent
    ) { fatalError() }
    public static func == (a: CGImage, b: CGImage) -> Bool { a === b }
    public func hash(into hasher: inout Hasher) {}
}
