//! `Content-Range` (RFC 9110 section 14.4).

/// The size in `bytes 0-9/100`.
pub(super) fn total(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split_once('/')?.1.trim().parse().ok()
}

/// First and last byte of `bytes 0-9/100` (RFC 9110 section 14.4).
pub(super) fn part(value: &str) -> Option<(u64, u64)> {
    let (range, _total) = value.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_say() {
        assert_eq!((part("bytes 0-9/100"), total("bytes 0-9/100")), (Some((0, 9)), Some(100)));
        assert_eq!((part(" bytes 5-5/* "), total("bytes 5-5/*")), (Some((5, 5)), None));
        for nonsense in ["", "bytes", "bytes */100", "bytes 1/2", "bytes a-b/c", "items 0-9/100"] {
            assert_eq!(part(nonsense), None, "{nonsense}");
        }
    }
}
