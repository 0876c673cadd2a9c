//! Memory sizes as people write them: `256M`, `1.5 GiB`, `512`.
//!
//! Units are binary, as in EC2, and a size is a whole number of MiB, the granularity of instance types.

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;

const MIB_PER_GIB: u64 = 1024;
const MIB_PER_TIB: u64 = 1024 * MIB_PER_GIB;
const BYTES_PER_MIB: u64 = 1024 * 1024;

/// Maximum number of digits after the decimal point: 1 MiB is 2^-20 TiB, which has twenty.
const MAX_FRACTION_DIGITS: usize = 20;

/// An amount of memory: a positive whole number of MiB. The number of bytes fits in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemorySize(NonZero<u64>);

impl MemorySize {
    pub const MAX: MemorySize = MemorySize(NonZero::new(u64::MAX / BYTES_PER_MIB).expect("2^44 - 1 is not zero"));

    /// Returns none if `mib` is zero or more than [`MemorySize::MAX`].
    pub fn from_mib(mib: u64) -> Option<Self> {
        NonZero::new(mib).map(MemorySize).filter(|size| *size <= Self::MAX)
    }

    pub fn mib(self) -> u64 {
        self.0.get()
    }

    pub fn bytes(self) -> u64 {
        self.mib() * BYTES_PER_MIB
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("missing memory size: specify a size such as 256M or 1G")]
    Empty,
    #[error("{0:?} is not a memory size: specify a number and a unit, such as 256M or 1G")]
    NotANumber(String),
    #[error("{0:?} is negative: the memory size must be positive")]
    Negative(String),
    #[error("{0:?} is zero: the memory size must be positive")]
    Zero(String),
    #[error("unknown unit {0:?}: use M, MiB, G, GiB, T or TiB (default: MiB)")]
    UnknownUnit(String),
    #[error("{0:?} is not a whole number of MiB: round it, and use the unit M")]
    NotWholeMib(String),
    #[error("{0:?} is too large: the number of bytes must fit in 64 bits")]
    TooLarge(String),
}

impl FromStr for MemorySize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let given = text.trim();
        if given.is_empty() {
            return Err(SizeError::Empty);
        }
        if let Some(rest) = given.strip_prefix('-')
            && rest.starts_with(|c: char| c.is_ascii_digit())
        {
            return Err(SizeError::Negative(given.to_owned()));
        }
        let number_end = given.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(given.len());
        let (number, unit) = given.split_at(number_end);
        let (whole, fraction) = split_number(number).ok_or_else(|| SizeError::NotANumber(given.to_owned()))?;
        let mib_per_unit = mib_per_unit(unit.trim())?;
        let mib = to_mib(whole, fraction, mib_per_unit, given)?;
        if mib == 0 {
            return Err(SizeError::Zero(given.to_owned()));
        }
        MemorySize::from_mib(mib).ok_or_else(|| SizeError::TooLarge(given.to_owned()))
    }
}

/// Splits a number at its decimal point. Returns none if either side of the point is empty, or if there are two points.
fn split_number(number: &str) -> Option<(&str, &str)> {
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (number, ""),
    };
    (!whole.is_empty() && !fraction.contains('.')).then_some((whole, fraction))
}

fn mib_per_unit(unit: &str) -> Result<u64, SizeError> {
    match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mi" | "mib" => Ok(1),
        "g" | "gi" | "gib" => Ok(MIB_PER_GIB),
        "t" | "ti" | "tib" => Ok(MIB_PER_TIB),
        _ => Err(SizeError::UnknownUnit(unit.to_owned())),
    }
}

fn to_mib(whole: &str, fraction: &str, mib_per_unit: u64, given: &str) -> Result<u64, SizeError> {
    let too_large = || SizeError::TooLarge(given.to_owned());
    let not_whole = || SizeError::NotWholeMib(given.to_owned());

    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let whole_mib = whole.checked_mul(mib_per_unit).ok_or_else(too_large)?;

    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() {
        return Ok(whole_mib);
    }
    if fraction.len() > MAX_FRACTION_DIGITS {
        return Err(not_whole());
    }
    // Twenty digits times 2^20 stay below 2^87.
    let digits: u128 = fraction.parse().map_err(|_| not_whole())?;
    let scaled = digits * u128::from(mib_per_unit);
    let scale = 10_u128.pow(fraction.len() as u32);
    if !scaled.is_multiple_of(scale) {
        return Err(not_whole());
    }
    let fraction_mib = u64::try_from(scaled / scale).map_err(|_| too_large())?;
    whole_mib.checked_add(fraction_mib).ok_or_else(too_large)
}

impl fmt::Display for MemorySize {
    /// Formats multiples of 256 MiB from 1 GiB on in GiB, and all other sizes in MiB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.mib();
        if mib < MIB_PER_GIB || !mib.is_multiple_of(MIB_PER_GIB / 4) {
            return f.pad(&format!("{mib} MiB"));
        }
        let hundredths = mib % MIB_PER_GIB * 100 / MIB_PER_GIB;
        let fraction = match hundredths {
            0 => String::new(),
            50 => ".5".to_owned(),
            other => format!(".{other}"),
        };
        f.pad(&format!("{}{fraction} GiB", mib / MIB_PER_GIB))
    }
}

/// Formats `mib` MiB for display, rounded down: `23.1 GiB`, `640 MiB`.
pub fn approximate_mib(mib: u64) -> String {
    approximate(mib, &["MiB", "GiB"])
}

/// Formats a number of bytes in the largest suitable unit, rounded down.
pub fn approximate_bytes(bytes: u64) -> String {
    approximate(bytes, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Formats `value`, which is in the first of `units`, with at most one decimal. Each unit is 1024 times the one before.
fn approximate(value: u64, units: &[&str]) -> String {
    let exponent = (value.checked_ilog2().unwrap_or(0) as usize / 10).min(units.len() - 1);
    let tenths = (u128::from(value) * 10) >> (10 * exponent);
    match (tenths / 10, tenths % 10, units[exponent]) {
        (whole, 0, unit) => format!("{whole} {unit}"),
        (whole, tenth, unit) => format!("{whole}.{tenth} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mib(text: &str) -> u64 {
        text.parse::<MemorySize>().expect(text).mib()
    }

    fn error(text: &str) -> SizeError {
        text.parse::<MemorySize>().expect_err(text)
    }

    #[test]
    fn size_accepts_all_units_and_spellings() {
        for text in ["256", "256M", "256m", "256Mi", "256MiB", "256 MiB", " 0.25G "] {
            assert_eq!(mib(text), 256, "{text}");
        }
        for text in ["1G", "1g", "1GiB", "1024", "1.0G", "1.000 gib"] {
            assert_eq!(mib(text), 1024, "{text}");
        }
        assert_eq!(mib("1.5G"), 1536);
        assert_eq!(mib("2T"), 2 * 1024 * 1024);
        assert_eq!(mib("0.00000095367431640625T"), 1);
    }

    #[test]
    fn invalid_size_is_refused_with_its_cause() {
        assert_eq!(error("  "), SizeError::Empty);
        assert_eq!(error("lots"), SizeError::NotANumber("lots".into()));
        assert_eq!(error(".5G"), SizeError::NotANumber(".5G".into()));
        assert_eq!(error("1.G"), SizeError::NotANumber("1.G".into()));
        assert_eq!(error("1.2.3G"), SizeError::NotANumber("1.2.3G".into()));
        assert_eq!(error("-1G"), SizeError::Negative("-1G".into()));
        assert_eq!(error("0"), SizeError::Zero("0".into()));
        assert_eq!(error("0.0G"), SizeError::Zero("0.0G".into()));
        assert_eq!(error("1GB"), SizeError::UnknownUnit("GB".into()));
        assert_eq!(error("1k"), SizeError::UnknownUnit("k".into()));
        assert_eq!(error("1.5"), SizeError::NotWholeMib("1.5".into()));
        assert_eq!(error("0.1G"), SizeError::NotWholeMib("0.1G".into()));
    }

    #[test]
    fn size_whose_bytes_overflow_is_too_large() {
        let max = MemorySize::MAX;
        assert_eq!(mib(&max.mib().to_string()), max.mib());
        assert!(max.bytes() > u64::MAX - BYTES_PER_MIB);
        for text in
            [(max.mib() + 1).to_string(), "18446744073709551615T".to_owned(), "99999999999999999999999999".to_owned()]
        {
            assert_eq!(error(&text), SizeError::TooLarge(text.clone()));
        }
    }

    #[test]
    fn size_displays_in_gib_or_mib() {
        let shown = |mib| MemorySize::from_mib(mib).expect("not zero").to_string();
        assert_eq!(shown(1), "1 MiB");
        assert_eq!(shown(512), "512 MiB");
        assert_eq!(shown(1024), "1 GiB");
        assert_eq!(shown(1536), "1.5 GiB");
        assert_eq!(shown(15616), "15.25 GiB");
        assert_eq!(shown(1025), "1025 MiB");
        assert_eq!(shown(4 * 1024 * 1024), "4096 GiB");
    }

    #[test]
    fn approximate_bytes_use_largest_suitable_unit() {
        assert_eq!(approximate_bytes(0), "0 B");
        assert_eq!(approximate_bytes(1023), "1023 B");
        assert_eq!(approximate_bytes(1024), "1 KiB");
        assert_eq!(approximate_bytes(1536), "1.5 KiB");
        assert_eq!(approximate_bytes(1024 * 1024 - 1), "1023.9 KiB");
        assert_eq!(approximate_bytes(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn approximate_mib_rounds_down() {
        assert_eq!(approximate_mib(0), "0 MiB");
        assert_eq!(approximate_mib(1023), "1023 MiB");
        assert_eq!(approximate_mib(2048), "2 GiB");
        assert_eq!(approximate_mib(23_703), "23.1 GiB");
        assert_eq!(approximate_mib(2047), "1.9 GiB");
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in ".*") {
            let _ = text.parse::<MemorySize>();
        }

        #[test]
        fn parse_of_size_like_text_never_panics(text in "-?[0-9]{0,30}\\.?[0-9]{0,30} ?[kKmMgGtT]?i?B?") {
            let _ = text.parse::<MemorySize>();
        }

        #[test]
        fn displayed_size_is_parsed_back(mib in 1..=MemorySize::MAX.mib()) {
            let size = MemorySize::from_mib(mib).expect("within the range");
            prop_assert_eq!(size.to_string().parse::<MemorySize>(), Ok(size));
        }
    }
}
