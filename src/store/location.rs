//! Where a volume is, as the user writes it: `BUCKET/VOLUME`, `s3://BUCKET/VOLUME` or `file:DIR/VOLUME`, each with an
//! optional `@SNAPSHOT`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::directory_files::TEMPORARY_FOLDER;

/// What holds the objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A bucket of an S3 server.
    Bucket(String),
    /// A directory of this host.
    Directory(PathBuf),
}

impl FromStr for Backend {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Backend, LocationError> {
        let no_bucket = || LocationError::NoBucket { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("file:") {
            let trimmed = path.trim_end_matches('/');
            return match (path.is_empty(), trimmed.is_empty()) {
                (true, _) => Err(no_bucket()),
                (_, true) => Ok(Backend::Directory("/".into())),
                _ => Ok(Backend::Directory(PathBuf::from(trimmed))),
            };
        }
        let path = match text.split_once("://") {
            Some(("s3", path)) => path,
            Some((scheme, _)) => return Err(LocationError::UnknownScheme { scheme: scheme.to_owned() }),
            None => text,
        };
        let bucket = path.trim_end_matches('/');
        if bucket.is_empty() || bucket.contains('/') {
            return Err(no_bucket());
        }
        check_bucket(bucket)?;
        Ok(Backend::Bucket(bucket.to_owned()))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Bucket(bucket) => f.write_str(bucket),
            Backend::Directory(directory) => write!(f, "file:{}", directory.display()),
        }
    }
}

/// A volume, or a snapshot of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// What holds the objects.
    pub backend: Backend,
    /// Name of the volume: one or more parts with slashes between them; one in a directory.
    pub volume: String,
    /// Name of a snapshot of it.
    pub snapshot: Option<String>,
}

/// Why a text is no location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Not one of the forms.
    #[error("{text:?} names no volume: write BUCKET/VOLUME, s3://BUCKET/VOLUME or file:DIR/VOLUME")]
    NoVolume {
        /// What was given.
        text: String,
    },
    /// Not a bucket or a directory alone.
    #[error("{text:?} names no bucket: write BUCKET, s3://BUCKET or file:DIR")]
    NoBucket {
        /// What was given.
        text: String,
    },
    /// An address of a server.
    #[error(
        "{scheme}:// is no place for a volume: write BUCKET/VOLUME, and --endpoint for the server's address"
    )]
    UnknownScheme {
        /// What stands before `://`.
        scheme: String,
    },
    /// A name that no bucket can have.
    #[error("bucket name {bucket:?} {problem}")]
    BadBucket {
        /// The name.
        bucket: String,
        /// Which rule it breaks.
        problem: &'static str,
    },
    /// A name that no volume can have.
    #[error("volume name {volume:?} {problem}")]
    BadVolume {
        /// The name.
        volume: String,
        /// Which rule it breaks.
        problem: &'static str,
    },
    /// A name that no snapshot can have.
    #[error("snapshot name {snapshot:?} {problem}")]
    BadSnapshot {
        /// The name.
        snapshot: String,
        /// Which rule it breaks.
        problem: &'static str,
    },
}

/// Leaves room in a key of 1024 bytes for the longest name that is put after it.
const VOLUME_BYTES_MAX: usize = 768;

/// What one part of a path may have on every file system.
const NAME_BYTES_MAX: usize = 255;
/// Longest name of a snapshot, bytes.
pub const SNAPSHOT_BYTES_MAX: usize = NAME_BYTES_MAX;

/// Names of a volume's own keys: a volume called so below another one would lie within it.
const LAYOUT_NAMES: [&str; 6] = ["volume", "independent", "keys", "claims", "manifests", "objects"];

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Location, LocationError> {
        let no_volume = || LocationError::NoVolume { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("file:") {
            let (directory, name) = path.trim_end_matches('/').rsplit_once('/').ok_or_else(no_volume)?;
            let directory = if directory.is_empty() { "/" } else { directory };
            return Location::of(Backend::Directory(PathBuf::from(directory)), name, text);
        }
        let path = match text.split_once("://") {
            Some(("s3", path)) => path,
            Some((scheme, _)) => return Err(LocationError::UnknownScheme { scheme: scheme.to_owned() }),
            None => text,
        };
        let (bucket, name) = path.split_once('/').ok_or_else(no_volume)?;
        check_bucket(bucket)?;
        Location::of(Backend::Bucket(bucket.to_owned()), name.trim_end_matches('/'), text)
    }
}

impl Location {
    fn of(backend: Backend, name: &str, text: &str) -> Result<Location, LocationError> {
        let (volume, snapshot) = match name.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot)),
            None => (name, None),
        };
        if volume.is_empty() {
            return Err(LocationError::NoVolume { text: text.to_owned() });
        }
        check_volume(volume)?;
        snapshot.map_or(Ok(()), check_snapshot)?;
        Ok(Location { backend, volume: volume.to_owned(), snapshot: snapshot.map(str::to_owned) })
    }

    /// What the keys of the volume begin with.
    pub fn prefix(&self) -> String {
        format!("{}/", self.volume)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            Backend::Bucket(bucket) => write!(f, "{bucket}/{}", self.volume)?,
            Backend::Directory(directory) => write!(f, "file:{}", directory.join(&self.volume).display())?,
        }
        match &self.snapshot {
            Some(snapshot) => write!(f, "@{snapshot}"),
            None => Ok(()),
        }
    }
}

/// The rules for bucket names of Amazon's (S3 user guide, "Bucket naming rules"). Some servers allow more; such names work nowhere else.
fn check_bucket(bucket: &str) -> Result<(), LocationError> {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends_well = bucket.starts_with(is_alphanumeric) && bucket.ends_with(is_alphanumeric);
    let problem = if bucket.is_empty() {
        "is empty"
    } else if !(3..=63).contains(&bucket.len()) {
        "must have 3 to 63 characters"
    } else if !bucket.chars().all(|c| is_alphanumeric(c) || matches!(c, '.' | '-')) {
        "may hold only lower-case letters, digits, dots and hyphens"
    } else if !ends_well || bucket.contains("..") {
        "must begin and end with a letter or digit, and have no two dots in a row"
    } else if bucket.parse::<std::net::Ipv4Addr>().is_ok() {
        "looks like an address"
    } else {
        return Ok(());
    };
    Err(LocationError::BadBucket { bucket: bucket.to_owned(), problem })
}

fn check_volume(volume: &str) -> Result<(), LocationError> {
    let problem = if volume.len() > VOLUME_BYTES_MAX {
        Some("is longer than 768 bytes")
    } else if volume.chars().any(char::is_control) {
        Some("holds a control character")
    } else if volume.split('/').next() == Some(TEMPORARY_FOLDER) {
        Some("is reserved for files being written")
    } else {
        volume.split('/').enumerate().find_map(|(index, part)| part_problem(index, part))
    };
    match problem {
        Some(problem) => Err(LocationError::BadVolume { volume: volume.to_owned(), problem }),
        None => Ok(()),
    }
}

fn part_problem(index: usize, part: &str) -> Option<&'static str> {
    match part {
        "" => Some("has an empty part: write one slash between parts"),
        "." | ".." => Some("must not have . or .. as a part"),
        _ if part.len() > NAME_BYTES_MAX => Some("has a part longer than 255 bytes"),
        _ if index > 0 && LAYOUT_NAMES.contains(&part) => Some(
            "would lie within another volume: volume, keys, claims, manifests and objects are its own names",
        ),
        _ => None,
    }
}

fn check_snapshot(snapshot: &str) -> Result<(), LocationError> {
    let bad = |problem| LocationError::BadSnapshot { snapshot: snapshot.to_owned(), problem };
    check_snapshot_name(snapshot).map_err(bad)
}

/// Whether a snapshot may be called so.
///
/// # Errors
/// What is wrong with the name.
pub fn check_snapshot_name(snapshot: &str) -> Result<(), &'static str> {
    let problem = if snapshot.is_empty() {
        "is empty: write VOLUME@NAME, or leave the @ out"
    } else if snapshot.contains(['@', '/']) {
        "must not contain @ or /"
    } else if snapshot.chars().any(char::is_control) {
        "holds a control character"
    } else if snapshot.len() > SNAPSHOT_BYTES_MAX {
        "is longer than 255 bytes"
    } else {
        return Ok(());
    };
    Err(problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Location, LocationError> {
        text.parse()
    }

    fn bucket(bucket: &str, volume: &str, snapshot: Option<&str>) -> Location {
        let (volume, snapshot) = (volume.to_owned(), snapshot.map(str::to_owned));
        Location { backend: Backend::Bucket(bucket.to_owned()), volume, snapshot }
    }

    #[test]
    fn every_form_is_understood() {
        assert_eq!(parse("disks/web"), Ok(bucket("disks", "web", None)));
        assert_eq!(parse("s3://disks/web"), Ok(bucket("disks", "web", None)));
        assert_eq!(parse("disks/team/web/"), Ok(bucket("disks", "team/web", None)));
        assert_eq!(parse("disks/web@before"), Ok(bucket("disks", "web", Some("before"))));
        assert_eq!(parse("disks/volume"), Ok(bucket("disks", "volume", None)));
        let file = parse("file:/srv/d@isks/web@s").unwrap();
        assert_eq!(file.backend, Backend::Directory("/srv/d@isks".into()));
        assert_eq!((file.volume.as_str(), file.snapshot.as_deref()), ("web", Some("s")));
        assert_eq!(parse("file:./web").unwrap().backend, Backend::Directory(".".into()));
        assert_eq!(parse("file:/web//").unwrap().backend, Backend::Directory("/".into()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("", "names no volume"),
            ("disks", "names no volume"),
            ("disks/", "names no volume"),
            ("disks/@snap", "names no volume"),
            ("/web", "bucket name \"\" is empty"),
            ("file:web", "file:DIR/VOLUME"),
            ("file:", "file:DIR/VOLUME"),
            ("http://host/disks/web", "--endpoint"),
            ("Disks/web", "lower-case"),
            ("di/web", "3 to 63"),
            ("my_disks/web", "lower-case"),
            ("-disks/web", "begin and end"),
            ("dis..ks/web", "two dots"),
            ("10.0.0.1/web", "address"),
            ("disks/a//b", "empty part"),
            ("disks//web", "empty part"),
            ("disks/../web", ".."),
            ("file:/srv/..", ".."),
            ("disks/a\nb", "control"),
            ("disks/web/objects", "within another volume"),
            ("disks/.s3bd-tmp", "reserved"),
            ("disks/web@", "is empty"),
            ("disks/web@a@b", "must not contain"),
            ("disks/web@a/b", "must not contain"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn a_bucket_or_a_directory_stands_alone() {
        for (text, printed) in [
            ("disks", "disks"),
            ("s3://disks/", "disks"),
            ("file:/srv/disks/", "file:/srv/disks"),
            ("file:disks", "file:disks"),
            ("file:/", "file:/"),
        ] {
            assert_eq!(text.parse::<Backend>().unwrap().to_string(), printed, "{text}");
        }
        for (text, words) in [
            ("", "names no bucket"),
            ("disks/web", "names no bucket"),
            ("file:", "names no bucket"),
            ("http://host", "--endpoint"),
            ("Disks", "lower-case"),
        ] {
            let error = text.parse::<Backend>().unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(text in "(s3://|file:|)[a-z@./ -]{0,12}(/[a-z.@]{0,5}){0,3}") {
            if let Ok(location) = parse(&text) {
                prop_assert_eq!(parse(&location.to_string()), Ok(location));
            }
        }
    }
}
