//! Times as JSON has them: RFC 3339, section 5.6.

use crate::tree::Time;

/// Reads a time; None if it is none.
pub(crate) fn parse(text: &str) -> Option<Time> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let number = |text: &str, len: usize| {
        (text.len() == len && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<i64>().ok())?
    };
    let mut date = date.splitn(3, '-');
    let (year, month, day) = (number(date.next()?, 4)?, number(date.next()?, 2)?, number(date.next()?, 2)?);
    let zone = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at(zone);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':');
    let (hour, minute, second) =
        (number(clock.next()?, 2)?, number(clock.next()?, 2)?, number(clock.next()?, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let last = *days.get(usize::try_from(month - 1).ok()?)?;
    if !(1..=last).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos = fraction.parse::<u32>().ok()? * 10u32.pow(9 - fraction.len() as u32);
    let offset = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign, offset) => {
            let (hours, minutes) = offset.split_once(':')?;
            let seconds = number(hours, 2)? * 3600 + number(minutes, 2)? * 60;
            if sign == "-" { -seconds } else { seconds }
        }
    };
    let before: i64 = days[..(month - 1) as usize].iter().sum();
    let y = year - 1;
    let day = y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + before + day - 1 - 719_162;
    Some(Time { secs: day * 86_400 + hour * 3600 + minute * 60 + second - offset, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let time = |secs, nanos| Some(Time { secs, nanos });
        assert_eq!(parse("1970-01-01T00:00:00Z"), time(0, 0));
        assert_eq!(parse("2023-11-14T22:13:20Z"), time(1_700_000_000, 0));
        assert_eq!(parse("2023-11-14T23:13:20.5+01:00"), time(1_700_000_000, 500_000_000));
        assert_eq!(parse("1969-12-31T23:59:59.000000001Z"), time(-1, 1));
        assert_eq!(parse("2000-02-29T00:00:00-00:30"), time(951_784_200, 0));
        assert_eq!(parse("0001-01-01T00:00:00Z"), time(-62_135_596_800, 0));
        assert_eq!(parse("9999-12-31T23:59:59Z"), time(253_402_300_799, 0));
        for bad in [
            "",
            "2023-11-14",
            "2023-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2023-01-01T24:00:00Z",
            "2023-01-01T00:00:00",
            "2023-01-01T00:00:00.Z",
            "+023-01-01T00:00:00Z",
            "2023-01-01T00:00:00+1:00",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
