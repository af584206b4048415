//! Times of RFC 3339, as JSON has them.

use crate::layer::entry::Timestamp;

/// The years of all times that there are have no more than 12; the days until then fit into 64 bits.
const YEAR_DIGITS: std::ops::RangeInclusive<usize> = 4..=12;

/// The time that `text` names. Years may have more than four digits and a sign: Go writes them so where a tar has such times.
pub(in crate::layer) fn parse(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once(['T', 't'])?;
    let (date, day) = date.rsplit_once('-')?;
    let (year, month) = date.rsplit_once('-')?;
    let year = match year.strip_prefix('-') {
        Some(digits) => -number(digits, YEAR_DIGITS)?,
        None => number(year, YEAR_DIGITS)?,
    };
    let (month, day) = (number(month, 2..=2)?, number(day, 2..=2)?);
    if !(1..=12).contains(&month) || !(1..=days_of_month(year, month)).contains(&day) {
        return None;
    }
    let zone_at = time.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = time.split_at(zone_at);
    let (time, fraction) =
        time.split_once('.').map_or((time, None), |(time, fraction)| (time, Some(fraction)));
    let [hour, minute, second] = two_digit_parts(time)?;
    let offset = offset_seconds(zone)?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let nanoseconds = match fraction {
        None => 0,
        Some(digits) => {
            let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
            let padded = is_number.then(|| digits.bytes().chain(std::iter::repeat(b'0')).take(9))?;
            padded.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'))
        }
    };
    let of_day = hour * 3600 + minute * 60 + second - offset;
    let seconds = i128::from(days_since_1970(year, month, day)) * 86_400 + i128::from(of_day);
    Some(Timestamp { seconds: i64::try_from(seconds).ok()?, nanoseconds })
}

fn number(digits: &str, length: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let valid = length.contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
    valid.then(|| digits.parse().ok())?
}

fn two_digit_parts<const COUNT: usize>(text: &str) -> Option<[i64; COUNT]> {
    let mut parts = [0; COUNT];
    let mut texts = text.split(':');
    for part in &mut parts {
        *part = number(texts.next()?, 2..=2)?;
    }
    texts.next().is_none().then_some(parts)
}

fn offset_seconds(zone: &str) -> Option<i64> {
    let sign = match zone.chars().next()? {
        'Z' | 'z' => return (zone.len() == 1).then_some(0),
        '-' => -1,
        _ => 1,
    };
    let [hours, minutes] = two_digit_parts(&zone[1..])?;
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// In the proleptic Gregorian calendar. Counting years from March puts the leap day last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (cycle, year_of_cycle) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_cycle = year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year;
    // 146,097 days in 400 years; 719,468 days from March of year 0 to 1970.
    cycle * 146_097 + day_of_cycle - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of `date --utc --date=… +%s`.
    #[test]
    fn times_are_seconds_since_1970() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2026-11-21T08:51:35Z", 1_795_251_095, 0),
            ("2000-02-29T23:59:59Z", 951_868_799, 0),
            ("1969-12-31T23:59:59Z", -1, 0),
            ("1600-03-01T00:00:00Z", -11_670_912_000, 0),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
            ("2026-11-21T10:51:35+02:00", 1_795_251_095, 0),
            ("2026-11-21T05:21:35.5-03:30", 1_795_251_095, 500_000_000),
            ("2026-11-21T08:51:35.0000000019Z", 1_795_251_095, 1),
            ("10000-01-01T00:00:00Z", 253_402_300_800, 0),
            ("-0001-12-31T23:59:59Z", -62_167_219_201, 0),
            ("292277026596-12-04T15:30:07Z", i64::MAX, 0),
            ("-292277022657-01-27T08:29:52Z", i64::MIN, 0),
        ];
        for (text, seconds, nanoseconds) in cases {
            assert_eq!(parse(text), Some(Timestamp { seconds, nanoseconds }), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "T",
            "Z",
            "2026-11-21",
            "2026-11-21T08:51:35",
            "2026-11-21 08:51:35Z",
            "2026-13-21T08:51:35Z",
            "2026-00-21T08:51:35Z",
            "2026-02-29T08:51:35Z",
            "2026-11-00T08:51:35Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T08:60:00Z",
            "2026-11-21T08:00:60Z",
            "2026-11-21T08:51Z",
            "2026-11-21T08:51:35.Z",
            "2026-11-21T08:51:35.5éZ",
            "2026-11-21T08:51:35.123456789xZ",
            "2026-11-21T08:51:35ZZ",
            "2026-11-21T08:51:35+25:00",
            "2026-11-21T08:51:35+0100",
            "26-11-21T08:51:35Z",
            "99999999999999999999-11-21T08:51:35Z",
            "999999999999-11-21T08:51:35Z",
            "292277026596-12-04T15:30:08Z",
            "-292277022657-01-27T08:29:51Z",
            "-026-11-21T08:51:35Z",
            "+2026-11-21T08:51:35Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
