import Foundation

/// Nanoseconds of a clock that never goes back; only differences mean something.
public func monotonicNanoseconds() -> Int64 {
    #if canImport(Darwin)
        return Int64(clock_gettime_nsec_np(CLOCK_UPTIME_RAW))
    #else
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec)
    #endif
}

/// Runs `body` and gives what it took, in nanoseconds.
public func timed<T>(_ body: () throws -> T) rethrows -> (value: T, nanoseconds: Int64) {
    let start = monotonicNanoseconds()
    let value = try body()
    return (value, monotonicNanoseconds() - start)
}
