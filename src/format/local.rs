//! The small files of the state directory: which log this is, and what has been seen in the bucket. Sealed bodies.

use serde::{Deserialize, Serialize};

use super::{
    ids::{Epoch, Generation, LogId},
    manifest::Digest,
};

/// Name of the file with [`LogIdentity`].
pub const LOG: &str = "log";
/// Name of its copy, which is written first: without the identity no record of the log can be read.
pub const LOG_COPY: &str = "log.copy";
/// Name of the file with [`Seen`].
pub const SEEN: &str = "seen";
/// Tenures that a log identity remembers. A manifest of one that is forgotten is older than as many openings.
pub const TENURES_MAX: usize = 64;

/// Which log the folder beside it holds. A copy of the folder that another host then writes to has other tenures, so the
/// two logs are told apart although they share an id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdentity {
    /// The log.
    pub log: LogId,
    /// The tenures under which it was written, oldest first.
    pub tenures: Vec<LogTenure>,
}

/// A tenure under which a log was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTenure {
    /// Of its claim.
    pub generation: Generation,
    /// Of its claim.
    pub nonce: u64,
    /// The epoch that it began from; or, where the volume went back to a snapshot under it, the last one before that.
    pub from: Epoch,
}

impl LogIdentity {
    /// Whether the log was written under this tenure.
    #[must_use]
    pub fn has(&self, generation: Generation, nonce: u64) -> bool {
        self.tenures.iter().any(|tenure| (tenure.generation, tenure.nonce) == (generation, nonce))
    }

    /// Whether a manifest of this tenure and epoch was published from the log, and may have the log laid on top of it.
    #[must_use]
    pub fn has_published(&self, generation: Generation, nonce: u64, epoch: Epoch) -> bool {
        let is_it = |tenure: &LogTenure| (tenure.generation, tenure.nonce) == (generation, nonce);
        self.tenures.iter().any(|tenure| is_it(tenure) && tenure.from < epoch)
    }

    /// Whether the log left the line of this tenure before `epoch`: the next one began from an earlier epoch.
    #[must_use]
    pub fn left_before(&self, generation: Generation, nonce: u64, epoch: Epoch) -> bool {
        let mut later =
            self.tenures.iter().skip_while(|tenure| (tenure.generation, tenure.nonce) != (generation, nonce));
        later.nth(1).is_some_and(|next| next.from < epoch)
    }
}

/// The newest epoch that this host has seen published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Tenure that published it.
    pub generation: Generation,
    /// The epoch.
    pub epoch: Epoch,
    /// Digest of the manifest's bytes.
    pub digest: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_from_before_its_tenure_is_not_of_the_log() {
        let tenures = vec![LogTenure { generation: Generation(3), nonce: 7, from: Epoch(5) }];
        let identity = LogIdentity { log: LogId([1; 16]), tenures };
        assert!(identity.has_published(Generation(3), 7, Epoch(6)));
        assert!(
            !identity.has_published(Generation(3), 7, Epoch(5)),
            "the volume went back to a snapshot since"
        );
        assert!(!identity.has_published(Generation(3), 8, Epoch(6)));
    }

    #[test]
    fn a_log_has_left_a_line_where_its_next_tenure_began() {
        let tenure =
            |number, from| LogTenure { generation: Generation(number), nonce: number, from: Epoch(from) };
        let identity =
            LogIdentity { log: LogId([1; 16]), tenures: vec![tenure(1, 0), tenure(3, 5), tenure(4, 7)] };
        let left = |number, epoch| identity.left_before(Generation(number), number, Epoch(epoch));
        assert!(!left(3, 6) && !left(3, 7), "what the next one began from is its own past");
        assert!(left(3, 8), "both went on from an older copy");
        assert!(left(1, 6) && !left(1, 5));
        assert!(!left(4, 100), "the last one goes on");
        assert!(!left(2, 100), "none of its tenures");
    }
}
