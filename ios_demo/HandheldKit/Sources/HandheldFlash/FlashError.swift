import CHandheldFlash

/// What the flash engine refused or could not do; `description` is for people and says what to do.
public struct FlashError: Error, CustomStringConvertible, Equatable, Sendable {
    /// The engine's own name of it, such as HH_FLASH_BUDGET.
    public let status: String
    public let description: String

    /// Throws what the last call on this thread reported; does nothing for success.
    static func check(_ status: hh_flash_status) throws {
        guard status != HH_FLASH_OK else { return }
        throw FlashError(
            status: String(cString: hh_flash_status_name(status)), description: String(cString: hh_flash_last_error()))
    }
}
