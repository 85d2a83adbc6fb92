//! How a check tells how far it has come.

/// A part of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Header, key slots, manifests, claims; counted in manifests and claims.
    Line,
    /// The objects that the newest manifest lists; counted in objects.
    Listed,
    /// The object table, and in the bucket what it names; counted in objects.
    Objects,
    /// The block map, and the frames it names where data is read; counted in blocks.
    Blocks,
    /// A plan being carried out; counted in steps.
    Repair,
}

impl Stage {
    /// What it is about, for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Line => "manifests and claims",
            Self::Listed => "newest objects",
            Self::Objects => "objects",
            Self::Blocks => "blocks",
            Self::Repair => "mending",
        }
    }
}

/// Told how far a check has come.
pub trait Progress: Send + Sync {
    /// A stage begins, with `total` units of work as far as is known. May be told again, where the total turns out
    /// otherwise, or the check begins anew because the volume moved on under it.
    fn begin(&self, stage: Stage, total: Option<u64>);
    /// So many more units of work are done.
    fn advance(&self, units: u64);
}

/// Tells nobody.
impl Progress for () {
    fn begin(&self, _: Stage, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
}
