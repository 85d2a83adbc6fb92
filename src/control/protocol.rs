//! Requests and replies: one JSON object a line. Described in `docs/control.md`.
//!
//! Unknown fields are ignored, so that either side may be newer by fields. A change that an older peer would misread
//! has another version.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Progress, Status};
use crate::{
    format::manifest::CloneRef,
    volume::{info::SnapshotInfo, usage::SnapshotUsage},
};

/// The version of this protocol.
pub const VERSION: u64 = 1;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Who is there?
    Hello,
    /// How is the volume?
    Status,
    /// Answer when everything acknowledged before is in the bucket.
    Sync,
    /// Give the volume another size; answered after a flush.
    Resize {
        /// What the client takes its size for, bytes: where it is another by now, nothing is done.
        from_bytes: u64,
        /// Its new size, bytes.
        size_bytes: u64,
        /// Change nothing, but count what would be discarded.
        dry_run: bool,
    },
    /// Collect garbage until nothing is left that may go.
    Collect {
        /// Whether objects go as well that nothing names.
        strays: bool,
    },
    /// Make the volume independent of the one that it is a clone of.
    Flatten,
    /// Take a snapshot of all that was acknowledged before.
    SnapshotCreate {
        /// Its name.
        name: String,
    },
    /// Delete a snapshot.
    SnapshotDelete {
        /// Its name.
        name: String,
    },
    /// Give a snapshot another name.
    SnapshotRename {
        /// What it is called.
        name: String,
        /// What it is to be called.
        to: String,
    },
    /// Keep a snapshot for a clone.
    SnapshotPin {
        /// Its name; none: take one now.
        name: Option<String>,
        /// The clone.
        clone: CloneRef,
    },
    /// Take a snapshot for a copy of this name.
    SnapshotCreateFor {
        /// The copy's name in the bucket.
        copy: String,
    },
    /// Which snapshots are there, and what do they hold?
    SnapshotList,
}

/// One line from the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The request is under way; another line follows.
    Working(Progress),
    /// The answer.
    Answer(Answer),
    /// There is none.
    Refused(Refusal),
}

/// What a request was answered with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Hello`].
    Hello(Hello),
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Resize`].
    Resized(Resized),
    /// It is done.
    Done,
    /// To [`Request::Collect`].
    Collected(Collected),
    /// To [`Request::Flatten`].
    Flattened {
        /// The volume that it depended on; none: it depended on nothing.
        origin: Option<String>,
        /// Data that was copied, bytes.
        copied_bytes: u64,
    },
    /// The snapshot that was taken, deleted or renamed.
    Snapshot(SnapshotInfo),
    /// To [`Request::SnapshotList`]: oldest first.
    Snapshots {
        /// All there are.
        snapshots: Vec<SnapshotUsage>,
    },
}

/// A change of a volume's size, as it was done or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// Size before, bytes.
    pub from_bytes: u64,
    /// Size after, bytes.
    pub size_bytes: u64,
    /// Data beyond the new end, bytes; not counted where the change was done.
    pub discarded_bytes: Option<u64>,
    /// Whether that is all; else it is more than that.
    pub discarded_exact: bool,
    /// The programs of the NBD clients that are connected, and go on with the size that they know; none where it is not
    /// known which.
    pub clients: Vec<Option<String>>,
}

/// Garbage that was collected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Objects deleted.
    pub deleted_objects: u64,
    /// Their lengths, bytes.
    pub deleted_bytes: u64,
    /// Plaintext moved out of sparse objects, bytes.
    pub moved_bytes: u64,
    /// Dead objects that wait for the grace time.
    pub waiting_objects: u64,
    /// Their lengths, bytes.
    pub waiting_bytes: u64,
    /// Clones that snapshots were held for, and that are not there any more.
    pub released_clones: Vec<String>,
    /// Objects deleted that nothing named, where that was asked for.
    pub stray_objects: Option<u64>,
    /// Their lengths, bytes.
    pub stray_bytes: Option<u64>,
}

/// Who serves which volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The volume's id, hexadecimal.
    pub volume: String,
    /// Where it is: `BUCKET/VOLUME`, or `file:DIR/VOLUME` with the whole path.
    pub location: String,
    /// Base address of the S3 server that has the bucket; none for Amazon's, and for a directory.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The server's process.
    pub pid: u32,
    /// Its version of s3bd.
    pub program: String,
    /// When it began to serve, milliseconds since 1970.
    pub since_ms: u64,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What to do about it.
    pub kind: RefusalKind,
    /// In words.
    pub message: String,
}

/// What the client of a refused request has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request makes no sense; the connection is closed.
    Invalid,
    /// The server does not know this request, or this version: it is older or newer than the client.
    Unsupported,
    /// Another host has taken the volume over.
    Fenced,
    /// Stored data is damaged.
    Damaged,
    /// The volume is closed, or closing.
    Closed,
    /// It failed for another reason.
    #[serde(other)]
    Failed,
}

impl Refusal {
    /// Of a request that this server has no answer for.
    #[must_use]
    pub fn unsupported(request: &Request) -> Self {
        Self::new(RefusalKind::Unsupported, format!("this server does not know the request {request:?}"))
    }

    pub(super) fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// The line for a request, with its end.
pub(super) fn encode_request(request: &Request) -> Vec<u8> {
    encode(request)
}

/// The line for a reply, with its end.
pub(super) fn encode_reply(reply: &Reply) -> Vec<u8> {
    encode(reply)
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Types of this file alone, with string keys: nothing in them can fail to be written.
    let mut value = serde_json::to_value(message).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.insert("version".to_owned(), VERSION.into());
    }
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The request in a line.
///
/// # Errors
/// `Unsupported`: it is well-formed, and of another version or of an unknown name. `Invalid`: it is no request.
pub(super) fn decode_request(line: &[u8]) -> Result<Request, Refusal> {
    let invalid = |what: String| Refusal::new(RefusalKind::Invalid, format!("not a request: {what}"));
    let value: Value = serde_json::from_slice(line).map_err(|error| invalid(error.to_string()))?;
    match value.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(version) => {
            let text = format!("this server speaks version {VERSION} of the control protocol, not {version}");
            return Err(Refusal::new(RefusalKind::Unsupported, text));
        }
        None => return Err(invalid("it has no version".to_owned())),
    }
    let Some(name) = value.get("request").and_then(Value::as_str).map(str::to_owned) else {
        return Err(invalid("it has no name".to_owned()));
    };
    serde_json::from_value(value).map_err(|error| {
        let text = format!("this server does not know the request {name:?}: {error}");
        Refusal::new(RefusalKind::Unsupported, text)
    })
}

/// The reply in a line.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode_reply(line: &[u8]) -> Result<Reply, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match value.get("version").and_then(Value::as_u64) {
        Some(VERSION) => serde_json::from_value(value).map_err(|error| error.to_string()),
        Some(version) => Err(format!("version {version} of the control protocol is not known here")),
        None => Err("it has no version".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_lines_that_the_document_shows() {
        assert_eq!(encode_request(&Request::Sync), b"{\"request\":\"sync\",\"version\":1}\n");
        let working = Reply::Working(Progress { left_bytes: 4096, store_away_ms: None });
        let line = "{\"left_bytes\":4096,\"reply\":\"working\",\"store_away_ms\":null,\"version\":1}\n";
        assert_eq!(String::from_utf8(encode_reply(&working)).unwrap(), line);
        assert_eq!(decode_reply(line.as_bytes()), Ok(working));
        let done = Reply::Answer(Answer::Done);
        let line = "{\"answer\":\"done\",\"reply\":\"answer\",\"version\":1}\n";
        assert_eq!(String::from_utf8(encode_reply(&done)).unwrap(), line);
        assert_eq!(decode_reply(line.as_bytes()), Ok(done));
        let refused = Reply::Refused(Refusal::new(RefusalKind::Fenced, "gone"));
        let line = "{\"kind\":\"fenced\",\"message\":\"gone\",\"reply\":\"refused\",\"version\":1}\n";
        assert_eq!(String::from_utf8(encode_reply(&refused)).unwrap(), line);
    }

    #[test]
    fn every_kind_of_answer_has_a_line() {
        let usage = SnapshotUsage {
            id: 1,
            name: "monday".to_owned(),
            epoch: crate::format::ids::Epoch(7),
            time_ms: 5,
            size_bytes: 1 << 30,
            own_bytes: 1,
            shared_bytes: 2,
            clones: vec!["copy".to_owned()],
        };
        let info = SnapshotInfo {
            id: 1,
            name: "a".to_owned(),
            epoch: usage.epoch,
            time_ms: 5,
            size_bytes: 9,
            clones: Vec::new(),
        };
        for answer in [Answer::Done, Answer::Snapshot(info), Answer::Snapshots { snapshots: vec![usage] }] {
            let line = encode_reply(&Reply::Answer(answer.clone()));
            assert_eq!(decode_reply(&line), Ok(Reply::Answer(answer)));
        }
    }

    #[test]
    fn newer_fields_are_ignored_and_newer_requests_and_versions_are_named() {
        let decode = |line: &str| decode_request(line.as_bytes()).map_err(|refusal| refusal.kind);
        assert_eq!(decode(r#"{"version":1,"request":"status","more":[1]}"#), Ok(Request::Status));
        assert_eq!(decode(r#"{"version":1,"request":"defragment"}"#), Err(RefusalKind::Unsupported));
        assert_eq!(decode(r#"{"version":2,"request":"status"}"#), Err(RefusalKind::Unsupported));
        for garbage in ["", "null", "[]", "{}", "{\"version\":1}", "\u{0}", r#"{"version":"1"}"#] {
            assert_eq!(decode(garbage), Err(RefusalKind::Invalid), "{garbage:?}");
        }
        let kind: RefusalKind = serde_json::from_str("\"of_a_later_version\"").unwrap();
        assert_eq!(kind, RefusalKind::Failed);
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let deep = "[".repeat(60_000);
        assert_eq!(decode_request(deep.as_bytes()).unwrap_err().kind, RefusalKind::Invalid);
    }
}
