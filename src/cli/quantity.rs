//! Sizes and ages as people type them.

/// Bytes: `4096`, `500MB`, `1.5GiB`. `K`, `M`, `G` and `T` alone are binary units.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("{unit:?} is no unit; there are B, KB, MB, GB, TB, KiB, MiB, GiB and TiB")),
    };
    scaled(number, factor)
}

/// Seconds: `90`, `90s`, `30m`, `12h`, `7d`, `2w`.
pub fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(format!("{unit:?} is no unit; there are s, m, h, d and w")),
    };
    scaled(number, factor)
}

fn split(text: &str) -> Result<(f64, &str), String> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, unit.trim()))
}

fn scaled(number: f64, factor: u64) -> Result<u64, String> {
    let product = number * factor as f64;
    // Above, not every whole number has a float of its own; nobody has such a disk.
    if product < 9e15 { Ok(product as u64) } else { Err("that is too much".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_read_as_people_type_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("500MB", Some(500_000_000)),
            ("1.5GiB", Some(3 << 29)),
            ("2g", Some(2 << 30)),
            ("7 kib", Some(7168)),
            ("", None),
            ("GB", None),
            ("-1", None),
            ("1XB", None),
            ("1.2.3", None),
            ("99999999TiB", None),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text:?}");
        }
        for (text, expected) in
            [("90", Some(90)), ("30m", Some(1800)), ("7d", Some(604_800)), ("1.5h", Some(5400)), ("1y", None)]
        {
            assert_eq!(seconds(text).ok(), expected, "{text:?}");
        }
    }
}
