import Foundation

/// A clip's frames in a file of their own, in the artefact's dtype: written by strips of rows, read by windows of rows.
final class StreamSpool {
    private(set) var count = 0
    private let shape: [Int]
    private let dtype: Manifest.DType
    private let file: URL
    private let handle: FileHandle

    /// `shape` is channels, height and width. Throws `.missing` where `folder` cannot be written.
    init(_ shape: [Int], _ dtype: Manifest.DType, in folder: URL) throws {
        self.shape = shape
        self.dtype = dtype
        file = folder.appendingPathComponent("handheld-\(UUID().uuidString).spool")
        guard FileManager.default.createFile(atPath: file.path, contents: nil) else {
            throw BundleError(.missing, "\(folder.path) cannot be written; frames between passes are kept there.")
        }
        handle = try FileHandle(forUpdating: file)
    }

    deinit {
        try? handle.close()
        try? FileManager.default.removeItem(at: file)
    }

    /// Throws `.missing` where the disk is full.
    func write(_ frames: StreamSlice, at first: Int, row: Int) throws {
        let from = frames.tensor
        defer { count = max(count, first + frames.frames.count) }
        if Array(from.shape[1...]) == shape && frames.rows == 0..<shape[1] {
            let range = frames.frames.lowerBound * from.frameBytes..<frames.frames.upperBound * from.frameBytes
            return try write(from.memory[range], at: offset(first, 0, 0))
        }
        for (frame, place) in zip(frames.frames, first...) {
            for channel in 0..<shape[0] {
                let start = (frame * shape[0] + channel) * from.planeBytes + frames.rows.lowerBound * from.rowBytes
                try write(from.memory[start..<start + frames.rows.count * from.rowBytes], at: offset(place, channel, row))
            }
        }
    }

    /// Fills the first frames of `tensor`, whose height is that of the window, with frames of the clip from `first` on.
    func read(_ count: Int, from first: Int, row: Int, into tensor: StreamTensor) throws {
        if tensor.shape[2] == shape[1] {
            let whole = UnsafeMutableRawBufferPointer(rebasing: tensor.memory[..<(count * tensor.frameBytes)])
            return try read(whole, at: offset(first, 0, 0))
        }
        for frame in 0..<count {
            for channel in 0..<shape[0] {
                let start = (frame * shape[0] + channel) * tensor.planeBytes
                try read(
                    UnsafeMutableRawBufferPointer(rebasing: tensor.memory[start..<start + tensor.planeBytes]),
                    at: offset(first + frame, channel, row))
            }
        }
    }

    // Plain reads and writes at a place: mapped pages would count as the app's memory.

    private func write(_ bytes: Slice<UnsafeMutableRawBufferPointer>, at offset: Int) throws {
        var rest = UnsafeRawBufferPointer(rebasing: bytes), place = offset
        while !rest.isEmpty {
            let done = pwrite(handle.fileDescriptor, rest.baseAddress, rest.count, off_t(place))
            guard done > 0 else {
                let reason = String(cString: strerror(errno))
                throw BundleError(
                    .missing, "The disk cannot hold the frames between two passes, \(place) bytes so far: \(reason). Free some space.")
            }
            rest = UnsafeRawBufferPointer(rebasing: rest[done...])
            place += done
        }
    }

    private func read(_ bytes: UnsafeMutableRawBufferPointer, at offset: Int) throws {
        var rest = bytes, place = offset
        while !rest.isEmpty {
            let done = pread(handle.fileDescriptor, rest.baseAddress, rest.count, off_t(place))
            guard done > 0 else {
                throw BundleError(.missing, "A file of frames between passes was cut short. Decode again.")
            }
            rest = UnsafeMutableRawBufferPointer(rebasing: rest[done...])
            place += done
        }
    }

    private func offset(_ frame: Int, _ channel: Int, _ row: Int) -> Int {
        ((frame * shape[0] + channel) * shape[1] + row) * shape[2] * dtype.bytes
    }
}

/// A window of a spool's rows, all of its frames.
final class SpoolSource: FrameSource {
    private let spool: StreamSpool
    private let row: Int
    private let tensor: StreamTensor
    private var done = 0

    /// `window` is the shape of the segment's x that reads it.
    init(_ spool: StreamSpool, row: Int, window: [Int], _ dtype: Manifest.DType) throws {
        self.spool = spool
        self.row = row
        tensor = try StreamTensor(window, dtype)
    }

    func next() throws -> StreamStep {
        let count = min(tensor.shape[0], spool.count - done)
        guard count > 0 else { return .ended }
        try spool.read(count, from: done, row: row, into: tensor)
        done += count
        return .frames(StreamSlice(tensor: tensor, frames: 0..<count, rows: 0..<tensor.shape[2]))
    }
}
