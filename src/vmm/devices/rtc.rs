//! The PC's real-time clock (MC146818): index at port 0x70, data at port 0x71. It returns the host's time in UTC.
//! Alarms and periodic interrupts are not implemented, and writes to the time are ignored.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;

/// The index port. The data port follows it.
pub const PORT: u16 = 0x70;
pub const LENGTH: u64 = 2;

const INDEX: u64 = 0;
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Register A: the 32,768 Hz time base. "Update in progress" is never set.
const TIME_BASE: u8 = 0x20;
/// Register B: 24-hour mode, values in BCD.
const HOURS_24: u8 = 0x02;
/// Register D: the battery is good.
const VALID: u8 = 0x80;

/// Returns the time in seconds since 1970, in UTC.
pub type Clock = fn() -> u64;

#[derive(Debug)]
pub struct Rtc {
    clock: Clock,
    index: u8,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RtcState {
    index: u8,
}

impl Default for Rtc {
    fn default() -> Rtc {
        Rtc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

impl Rtc {
    pub fn new(clock: Clock) -> Rtc {
        Rtc { clock, index: 0 }
    }

    /// Returns the selected register, which is the only state, because the time is always the host's.
    pub fn state(&self) -> RtcState {
        RtcState { index: self.index }
    }

    pub fn restore(&mut self, state: &RtcState) {
        self.index = state.index;
    }

    fn register(&self) -> u8 {
        let time = rtc_time((self.clock)());
        match self.index {
            SECONDS => bcd(time.second),
            MINUTES => bcd(time.minute),
            HOURS => bcd(time.hour),
            DAY_OF_WEEK => bcd(time.day_of_week),
            DAY_OF_MONTH => bcd(time.day),
            MONTH => bcd(time.month),
            YEAR => bcd((time.year % 100) as u8),
            CENTURY => bcd((time.year / 100) as u8),
            REGISTER_A => TIME_BASE,
            REGISTER_B => HOURS_24,
            REGISTER_D => VALID,
            _ => 0,
        }
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset != INDEX {
            data[0] = self.register();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == INDEX {
            // Bit 7 masks the NMI and is not part of the index.
            self.index = data[0] & 0x7f;
        }
    }
}

fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}

#[derive(Debug, PartialEq, Eq)]
struct RtcTime {
    year: u64,
    month: u8,
    day: u8,
    /// Sunday is 1.
    day_of_week: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

/// Converts seconds since 1970 to the Gregorian calendar. Years begin in March here, so that the leap day is the last
/// day of the year. There are 719,468 days from 0000-03-01 to 1970-01-01.
fn rtc_time(seconds: u64) -> RtcTime {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    RtcTime {
        year: era * 400 + year_of_era + u64::from(month <= 2),
        month: month as u8,
        day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
        day_of_week: ((days + 4) % 7 + 1) as u8,
        hour: (second_of_day / 3600) as u8,
        minute: (second_of_day / 60 % 60) as u8,
        second: (second_of_day % 60) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(INDEX, &[index]);
        let mut data = [0xff];
        rtc.read(1, &mut data);
        data[0]
    }

    #[test]
    fn calendar_is_right_on_leap_days_and_year_ends() {
        let cases = [
            (0, (1970, 1, 1, 5)),
            (951_782_400, (2000, 2, 29, 3)),
            (1_709_164_800, (2024, 2, 29, 5)),
            (4_102_444_799, (2099, 12, 31, 5)),
        ];
        for (seconds, (year, month, day, day_of_week)) in cases {
            let time = rtc_time(seconds);
            assert_eq!((time.year, time.month, time.day, time.day_of_week), (year, month, day, day_of_week));
        }
    }

    #[test]
    fn rtc_registers_are_in_bcd() {
        let mut rtc = Rtc::new(|| 1_709_251_199);
        let registers: Vec<u8> = [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS]
            .into_iter()
            .map(|index| read(&mut rtc, index))
            .collect();
        assert_eq!(registers, [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x59]);
    }

    #[test]
    fn nmi_bit_is_masked_from_index() {
        let mut rtc = Rtc::new(|| 0);
        assert_eq!(read(&mut rtc, 0x80 | REGISTER_D), VALID);
    }
}
