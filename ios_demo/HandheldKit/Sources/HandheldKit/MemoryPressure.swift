import Foundation

/// What the system says of its memory, before it ends apps that do not heed it.
public enum MemoryPressure: Sendable {
    case warning, critical

    /// From now on; there are none where the system does not tell.
    public static var events: AsyncStream<MemoryPressure> {
        AsyncStream { continuation in
            #if canImport(Darwin)
                let source = DispatchSource.makeMemoryPressureSource(eventMask: [.warning, .critical], queue: .main)
                source.setEventHandler {
                    continuation.yield(source.data.contains(.critical) ? .critical : .warning)
                }
                continuation.onTermination = { _ in source.cancel() }
                source.activate()
            #endif
        }
    }
}
