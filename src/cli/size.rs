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

/// Reads a duration such as `30s`, `500ms` or `5m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration such as 500ms, 30s, 5m or 1h".to_owned();
    let duration: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero()).ok_or_else(wrong)
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
    fn durations_have_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "5", "0s", "-3s", "soon"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
