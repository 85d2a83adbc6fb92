//! Sizes and durations as people write and read them.

use std::time::Duration;

use bytesize::ByteSize;

/// What the help texts say about sizes.
pub(super) const SIZE_HELP: &str = "a number of bytes, or with a unit: K, M, G, T, P, E (also KB, KiB, …) are powers \
    of 1024, so 20GB is 20 x 1024 x 1024 x 1024 bytes";

/// Reads a size.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let parsed = parse_size::Config::new().with_binary().parse_size(text);
    match parsed {
        Ok(0) => Err("it must be more than nothing".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("{error}: {SIZE_HELP}")),
    }
}

/// Reads a size that may be zero.
pub(super) fn parse_size_or_none(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { parse_size(text) }
}

/// A size, or a difference to what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewSize {
    To(u64),
    Larger(u64),
    Smaller(u64),
}

/// Reads a size, or one with a sign.
pub(super) fn parse_new_size(text: &str) -> Result<NewSize, String> {
    match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(rest), _) => parse_size(rest).map(NewSize::Larger),
        (_, Some(rest)) => parse_size(rest).map(NewSize::Smaller),
        _ => parse_size(text).map(NewSize::To),
    }
}

impl NewSize {
    /// What it comes to; `None` where that is no size.
    pub(super) fn of(self, bytes: u64) -> Option<u64> {
        match self {
            Self::To(size) => Some(size),
            Self::Larger(more) => bytes.checked_add(more),
            Self::Smaller(less) => bytes.checked_sub(less).filter(|size| *size > 0),
        }
    }
}

/// Reads a duration such as `30s`, `500ms` or `5m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration such as 500ms, 30s, 5m or 1h".to_owned();
    let duration: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero()).ok_or_else(wrong)
}

/// Reads a duration that may be none at all.
pub(super) fn parse_duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" || text == "0s" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// How far behind a bucket may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lag {
    Time(Duration),
    Bytes(u64),
}

/// Reads a time or a size. What is a time is none of a size: `5m` is five minutes, and `5M` and `5MB` are a size.
pub(super) fn parse_lag(text: &str) -> Result<Lag, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    if ["ms", "s", "m", "h", "d"].contains(&unit) {
        // The unit of a day is none of jiff's durations, whose days may have another length.
        let hours =
            unit.eq("d").then(|| text.trim_end_matches('d').parse::<u64>().ok()?.checked_mul(24)).flatten();
        let text = hours.map_or(text.to_owned(), |hours| format!("{hours}h"));
        return parse_duration(&text).map(Lag::Time);
    }
    if unit.is_empty() {
        return Err("write a time such as 30s or 10m, or a size such as 512M or 2G".to_owned());
    }
    parse_size(text).map(Lag::Bytes)
}

/// A span of time for people, two units at most.
pub(super) fn show_span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// A size for people: binary units, one decimal.
pub(super) fn show_size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_whatever_the_spelling() {
        for text in ["20GB", "20G", "20GiB", "20 gb", "21474836480", "20g"] {
            assert_eq!(parse_size(text), Ok(20 << 30), "{text}");
        }
        assert_eq!(parse_size("1.5K"), Ok(1536));
        for text in ["", "GB", "20X", "-1", "0", "1e30"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_new_size_is_one_or_a_difference() {
        let of = |text: &str| parse_new_size(text).unwrap().of(10 << 30);
        assert_eq!((of("20GB"), of("+10G"), of("-4GiB")), (Some(20 << 30), Some(20 << 30), Some(6 << 30)));
        assert_eq!((of("-10G"), of("-11G"), of("+15.999999999E")), (None, None, None));
        for text in ["", "+", "-", "+-1", "--1", "0", "+0", "-0", "10%"] {
            assert!(parse_new_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_lag_is_a_time_or_a_size_and_nothing_in_between() {
        assert_eq!(parse_lag("5m"), Ok(Lag::Time(Duration::from_secs(300))));
        assert_eq!(parse_lag("2d"), Ok(Lag::Time(Duration::from_secs(2 * 86_400))));
        assert_eq!(parse_lag("1500ms"), Ok(Lag::Time(Duration::from_millis(1500))));
        assert_eq!(parse_lag("5M"), Ok(Lag::Bytes(5 << 20)));
        assert_eq!(parse_lag("5mb"), Ok(Lag::Bytes(5 << 20)));
        assert_eq!(parse_lag("1.5G"), Ok(Lag::Bytes(3 << 29)));
        for text in ["", "5", "0s", "0G", "m", "99999999999999999999d", "soon"] {
            assert!(parse_lag(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let shown = [0, 999, 1000, 59_999, 61_000, 3_661_000, 90_000_000].map(show_span);
        assert_eq!(shown, ["0 ms", "999 ms", "1 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "5", "0s", "-3s", "soon"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
