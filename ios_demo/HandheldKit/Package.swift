// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "HandheldKit",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "HandheldKit", targets: ["HandheldKit", "HandheldFlash", "HandheldCoreML", "HandheldCoreAI"])],
    targets: [
        // Bundles, golden tensors, stream plans, profiles: no Apple framework, so it builds and is tested on Linux.
        .target(name: "HandheldKit"),
        // The flash engine's own sources, through links into runtime/flash.
        .target(name: "CHandheldFlash", sources: ["src"], publicHeadersPath: "include"),
        .target(name: "HandheldFlash", dependencies: ["CHandheldFlash", "HandheldKit"]),
        // Empty where Core ML cannot be imported.
        .target(name: "HandheldCoreML", dependencies: ["HandheldKit"]),
        // Only the choice of units where Core AI cannot be imported: SDKs before iOS 27, the simulator.
        .target(name: "HandheldCoreAI", dependencies: ["HandheldKit"]),
        .testTarget(name: "HandheldKitTests", dependencies: ["HandheldKit", "HandheldFlash"]),
    ],
    cxxLanguageStandard: .cxx17
)
