//! Times as the TOC has them.

use crate::layer::entry::Timestamp;

/// RFC 3339 in UTC, with a fraction if there is one; empty, which stands for it, for the beginning of 1970. The reference rounds to
/// seconds; its reader takes fractions.
pub fn rfc3339(time: Timestamp) -> String {
    let Timestamp { seconds, nanoseconds } = time;
    if seconds == 0 && nanoseconds == 0 {
        return String::new();
    }
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    // The sign is not one of the four digits.
    let (sign, year) = (if year < 0 { "-" } else { "" }, year.unsigned_abs());
    let mut text = format!(
        "{sign}{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    );
    if nanoseconds != 0 {
        let fraction = format!(".{nanoseconds:09}");
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Year, month and day, in the proleptic Gregorian calendar, of a day counted from 1970. Counting years from March puts the leap day
/// last; 719,468 days lie between March of year 0 and 1970, 146,097 are in 400 years.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_cycle + cycle * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of `date --utc`.
    #[test]
    fn times_are_dates_in_utc() {
        for (seconds, nanoseconds, expected) in [
            (0, 0, ""),
            (0, 1, "1970-01-01T00:00:00.000000001Z"),
            (-1, 500_000_000, "1969-12-31T23:59:59.5Z"),
            (951_868_799, 0, "2000-02-29T23:59:59Z"),
            (1_795_251_095, 0, "2026-11-21T08:51:35Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59Z"),
            (-62_135_596_800, 0, "0001-01-01T00:00:00Z"),
            (-62_167_219_201, 0, "-0001-12-31T23:59:59Z"),
            (i64::MAX, 0, "292277026596-12-04T15:30:07Z"),
            (i64::MIN, 0, "-292277022657-01-27T08:29:52Z"),
        ] {
            let time = Timestamp { seconds, nanoseconds };
            assert_eq!(rfc3339(time), expected);
            let read = crate::layer::toc::parse_rfc3339(expected);
            assert_eq!(read, Some(time).filter(|_| !expected.is_empty()));
        }
    }
}
