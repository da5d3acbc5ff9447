import CHandheldFlash
import Foundation

/// An open pack: a language model's weights on storage. May be used from any thread; models of it keep what they need.
public final class FlashPack: @unchecked Sendable {
    let handle: OpaquePointer
    let folder: URL

    /// Opens the pack in `folder`. Header, bounds and sizes are checked; no weights are read, nothing is hashed.
    /// Throws `FlashError`.
    public init(folder: URL) throws {
        var pack: OpaquePointer?
        try FlashError.check(hh_flash_pack_open(folder.path, UInt32(HH_FLASH_DIRECT_IO), &pack))
        handle = pack!
        self.folder = folder
    }

    deinit { hh_flash_pack_close(handle) }

    /// SHA-256 of the pack's header, which names the pack, in lowercase hexadecimal.
    public var identity: String {
        get throws {
            withUnsafeBytes(of: try info().identity) { bytes in
                bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
            }
        }
    }

    /// Reads all of the pack and compares every SHA-256: takes as long as reading the files does. Throws `FlashError`.
    public func verify() throws {
        try FlashError.check(hh_flash_pack_verify(handle))
    }

    /// The smallest memory with which `options` open a model, in bytes.
    public func floor(_ options: FlashModel.Options) throws -> UInt64 {
        var bytes: UInt64 = 0
        var native = options.native(try modelInfo(), budgetBytes: .max)
        try FlashError.check(hh_flash_model_floor(handle, &native, &bytes))
        return bytes
    }

    /// Of the feed-forward weights, as profiles name it.
    public var precision: String {
        get throws {
            switch hh_flash_dtype(try info().dtype) {
            case HH_FLASH_FP32: return "fp32"
            case HH_FLASH_FP16: return "fp16"
            case HH_FLASH_INT8: return "int8"
            case HH_FLASH_INT4: return "int4"
            case HH_FLASH_INT4M: return "int4m"
            default: return "unknown"
            }
        }
    }

    /// Of the files with weights.
    var sizeBytes: Int {
        get throws {
            let resident = folder.appendingPathComponent("resident.safetensors")
            let attributes = try FileManager.default.attributesOfItem(atPath: resident.path)
            return Int(try info().file_bytes) + ((attributes[.size] as? NSNumber)?.intValue ?? 0)
        }
    }

    /// Tokens that end a text.
    var endTokens: Set<UInt32> {
        get throws {
            var info = try modelInfo()
            let count = Int(info.eos_count)
            return withUnsafeBytes(of: &info.eos) { Set($0.bindMemory(to: UInt32.self).prefix(count)) }
        }
    }

    private func info() throws -> hh_flash_info {
        var info = hh_flash_info()
        info.struct_bytes = UInt32(MemoryLayout<hh_flash_info>.size)
        try FlashError.check(hh_flash_pack_info(handle, &info))
        return info
    }

    func modelInfo() throws -> hh_flash_model_info {
        var info = hh_flash_model_info()
        info.struct_bytes = UInt32(MemoryLayout<hh_flash_model_info>.size)
        try FlashError.check(hh_flash_pack_model_info(handle, &info))
        return info
    }
}
