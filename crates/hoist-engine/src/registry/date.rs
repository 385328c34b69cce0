//! Points in time as servers and manifests write them, to the second, since 1970: HTTP dates (RFC
//! 9110 section 5.6.7, all three forms) and RFC 3339. What is no date is none; nothing here fails.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// This machine's clock.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT` or `Sun Nov  6 08:49:37 1994`.
pub(super) fn http(text: &str) -> Option<u64> {
    let words: Vec<_> = text.split([' ', '-', ',']).filter(|word| !word.is_empty()).collect();
    let (day, month, year, time) = match words[..] {
        [_, day, month, year, time, "GMT"] => (day, month, year, time),
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year = match (digits(year, 4), digits(year, 2)) {
        (Some(year), _) => year,
        // Two digits stand for a year of this century, unless that is far ahead.
        (None, Some(short)) if short < 70 => 2000 + short,
        (None, short) => 1900 + short?,
    };
    let day = digits(day, 2).or_else(|| digits(day, 1))?;
    seconds(year, month, day, clock(time)?)
}

/// `1994-11-06T08:49:37.5Z`, or with an offset such as `+01:00`; fractions are cut.
pub(crate) fn rfc3339(text: &str) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let (time, zone) = rest.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
    let zone = match zone.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => zone,
    };
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let utc = seconds(digits(year, 4)?, digits(month, 2)?, digits(day, 2)?, clock(time)?)?;
    if matches!(zone, "Z" | "z") {
        return Some(utc);
    }
    let (sign, offset) = zone.split_at_checked(1)?;
    let (hours, minutes) = offset.split_once(':')?;
    let offset = digits(hours, 2)? * 3600 + digits(minutes, 2)? * 60;
    match sign {
        "+" => utc.checked_sub(offset),
        "-" => Some(utc + offset),
        _ => None,
    }
}

/// `1994-11-06T08:49:37Z`, of seconds since 1970.
pub fn to_rfc3339(at: u64) -> String {
    let (days, rest) = (at / 86_400, at % 86_400);
    // Years begin in March here, so that the odd day of a leap year is the last one.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Seconds of the day; a leap second counts as the one after.
fn clock(text: &str) -> Option<u64> {
    let mut parts = text.split(':').map(|part| digits(part, 2));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    (parts.next().is_none() && hour < 24 && minute < 60 && second <= 60)
        .then_some(hour * 3600 + minute * 60 + second)
}

fn digits(text: &str, length: usize) -> Option<u64> {
    let fits = text.len() == length && text.bytes().all(|c| c.is_ascii_digit());
    fits.then(|| text.parse().ok())?
}

fn seconds(year: u64, month: u64, day: u64, clock: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Some(days.checked_sub(719_468)? * 86_400 + clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GNU date is asked, in every form and over the leap days that matter.
    #[test]
    fn dates_are_what_gnu_date_says() {
        let mut at = 0;
        let mut given = String::new();
        let mut points = Vec::new();
        while at < 6_000_000_000 {
            points.push(at);
            given += &format!("@{at}\n");
            at += 86_400 * 53 + 3601;
        }
        for leap_day in [951_782_400, 951_868_800, 4_107_456_000, 4_107_542_400] {
            points.push(leap_day);
            given += &format!("@{leap_day}\n");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), given).unwrap();
        let format =
            "+%a, %d %b %Y %H:%M:%S GMT|%a %b %e %H:%M:%S %Y|%FT%TZ|%FT%T.25+00:00|%A, %d-%b-%y %T GMT";
        let output = std::process::Command::new("date")
            .env("LC_ALL", "C")
            .args(["-u", "-f"])
            .arg(file.path())
            .arg(format)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.lines().count(), points.len());
        for (line, at) in said.lines().zip(points) {
            let forms: Vec<_> = line.split('|').collect();
            assert_eq!(http(forms[0]), Some(at), "{line}");
            assert_eq!(http(forms[1]), Some(at), "{line}");
            assert_eq!((rfc3339(forms[2]), rfc3339(forms[3])), (Some(at), Some(at)), "{line}");
            assert_eq!(to_rfc3339(at), forms[2]);
            if at < 3_155_760_000 {
                assert_eq!(http(forms[4]), Some(at), "{line}");
            }
        }
        assert_eq!(rfc3339("1994-11-06T09:49:37+01:00"), http("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(rfc3339("1994-11-06T07:49:37-01:00"), rfc3339("1994-11-06T08:49:37Z"));
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "soon",
            "Sun, 06 Nov 1994",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Now 1994 08:49:37 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, 0x Nov 1994 08:49:37 GMT",
            "-1",
            "ü",
        ] {
            assert_eq!(http(text), None, "{text}");
        }
        for text in [
            "",
            "1994-11-06",
            "1994-11-06T08:49:37",
            "1994-13-06T08:49:37Z",
            "1970-01-01T00:00:00+01:00",
            "1994-11-06T08:49:37.Z5",
            "1994-11-06T08:49:37+0100",
            "1994-11-06Tü8:49:37Z",
        ] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }
}
