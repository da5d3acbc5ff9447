import CHandheldFlash

/// The engine's own name of a status.
func statusName(_ status: hh_flash_status) -> String { String(cString: hh_flash_status_name(status)) }
