//! Times and sizes as options take them.

use std::time::Duration;

/// `90s`, `2m`, `500ms`; a bare number is seconds.
///
/// # Errors
/// Anything else, and nothing at all.
pub fn time(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time: expected a number and ms, s, m or h, as 90s");
    let (number, unit) = split(text).ok_or_else(bad)?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    let all = number.checked_mul(milliseconds).filter(|&all| all > 0).ok_or_else(bad)?;
    Ok(Duration::from_millis(all))
}

/// The same, or none: `0`.
///
/// # Errors
/// Anything else.
pub fn time_or_none(text: &str) -> Result<Duration, String> {
    if ["0", "0s"].contains(&text) { Ok(Duration::ZERO) } else { time(text) }
}

/// `20G`, `512M`, `1T`, binary like all sizes of memory and files here; a bare number is bytes.
///
/// # Errors
/// Anything else.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size: expected a number and K, M, G or T, as 20G");
    let (number, unit) = split(text).ok_or_else(bad)?;
    let unit = unit.strip_suffix("iB").unwrap_or(unit).to_ascii_uppercase();
    let shift = match unit.as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_and_what_is_not() {
        assert_eq!(time("90"), Ok(Duration::from_secs(90)));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "0", "-1s", "1.5s", "3 s", "9999999999999999999h", "1d"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!((time_or_none("0"), time_or_none("7")), (Ok(Duration::ZERO), time("7s")));
        assert_eq!((size("0"), size("7"), size("3k")), (Ok(0), Ok(7), Ok(3072)));
        assert_eq!((size("20G"), size("20GiB")), (Ok(20 << 30), Ok(20 << 30)));
        for bad in ["", "G", "-1G", "1.5G", "20 G", "9999999999999T", "1X"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
