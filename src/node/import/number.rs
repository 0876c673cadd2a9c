//! Numbers in the headers of tar archives (tar(5)).

/// Parses a number in a header: octal digits between spaces and NULs, or a signed base-256 number if the first bit is
/// set. A field without digits is zero.
pub(super) fn number(field: &[u8]) -> Option<i128> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let sign = if first & 0x40 != 0 { -0x40 } else { 0 };
        // Fields have up to 12 bytes, so a number has up to 95 bits.
        return Some(
            rest.iter().take(14).fold(i128::from(first & 0x3f) + sign, |value, byte| value << 8 | i128::from(*byte)),
        );
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = field[start..].split(blank).next().unwrap_or_default();
    digits.iter().try_fold(0i128, |value, digit| match digit {
        b'0'..=b'7' => Some(value << 3 | i128::from(digit - b'0')),
        _ => None,
    })
}
