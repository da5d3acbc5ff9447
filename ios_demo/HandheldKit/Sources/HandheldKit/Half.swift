/// IEEE 754 half precision by its bits: `Float16` is not there on Intel Macs, and so not in their simulators.

/// The nearest half, ties to even; too large becomes infinity.
public func halfBits(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    let sign = UInt16(bits >> 16 & 0x8000)
    let magnitude = bits & 0x7FFF_FFFF
    if magnitude >= 0x7F80_0000 { return sign | (magnitude > 0x7F80_0000 ? 0x7E00 : 0x7C00) }
    if magnitude >= 0x477F_F000 { return sign | 0x7C00 }  // 65520 and more round to infinity
    if magnitude < 0x3880_0000 {
        // Subnormal: adding 0.5 puts the unit in the last place of a half at that of the sum, which then rounds.
        let sum = Float(bitPattern: magnitude) + 0.5
        return sign | UInt16(truncatingIfNeeded: sum.bitPattern &- Float(0.5).bitPattern)
    }
    let rounded = magnitude &+ 0x0FFF &+ (magnitude >> 13 & 1)
    return sign | UInt16((rounded &- 0x3800_0000) >> 13)
}

public func float(bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) << 16
    let magnitude = UInt32(bits & 0x7FFF)
    if magnitude >= 0x7C00 { return Float(bitPattern: sign | 0x7F80_0000 | (magnitude & 0x3FF) << 13) }
    if magnitude < 0x0400 {
        let value = Float(magnitude) * 0x1p-24
        return sign == 0 ? value : -value
    }
    return Float(bitPattern: sign | (magnitude << 13) &+ 0x3800_0000)
}
