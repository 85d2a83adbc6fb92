//! The volume's size: what it may be, changing it while clients write, and what a smaller one discards.
//!
//! # Invariants
//! - A change is a record of the log like a write: what comes before it in the log lies within the old size, what comes
//!   after it within the new one.
//! - With it goes a zero over all between the old end and the new one. So the cut that publishes a smaller size lets go of
//!   what lay beyond the end, no map has anything there from then on, and a volume that grows again reads zeros there. And
//!   every change of the size has a cut with an object, by which it is found without its manifest, too.

use bytes::Bytes;

use super::{
    core::Core,
    error::VolumeError,
    layer::{Content, Piece},
    record,
    state::{Located, Source, State},
    walk::{Direct, Walk},
};
use crate::format::{
    index::MapKind,
    page::{Page, Target},
};

/// Largest size, bytes: offsets are signed numbers to clients and operating systems.
pub const SIZE_BYTES_MAX: u64 = i64::MAX as u64;

/// Leaves of the block map that are read to count what a smaller size discards: some seconds' worth at a store's latency,
/// and 8 GiB at least where all of it holds data.
const LEAVES_MAX: usize = 4096;
/// Pages under way at once.
const LOADS_MAX: usize = 16;

/// Checks that a volume can have a size.
///
/// # Errors
/// `Invalid`, with the rule.
pub fn check_size(size_bytes: u64, block_bytes: u32) -> Result<(), VolumeError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(u64::from(block_bytes)) {
        let text = format!(
            "a volume of {size_bytes} bytes cannot be: its size is a multiple of {block_bytes} bytes"
        );
        return Err(VolumeError::Invalid(text));
    }
    if size_bytes > SIZE_BYTES_MAX {
        return Err(VolumeError::Invalid(
            "a volume is smaller than 8 EiB: no client can address more".to_owned(),
        ));
    }
    Ok(())
}

/// What a change of the size lays onto the active layer; the two differ.
pub(super) fn zeros_between(from_bytes: u64, size_bytes: u64) -> Piece {
    Piece { start: from_bytes.min(size_bytes), end: from_bytes.max(size_bytes), content: Content::Zero }
}

/// What is mapped in a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// Bytes that hold data, or are lost.
    pub bytes: u64,
    /// Whether that is all; else there is more, which was not counted.
    pub exact: bool,
}

impl Core {
    /// Gives the volume another size, at once and for all that is written after it. On `Ok` that is as durable as after a
    /// flush. `from_bytes` is the size that the caller takes it for.
    ///
    /// # Errors
    /// `Invalid` for a size that cannot be, `SizeChanged` where the volume has another one than `from_bytes`: nothing was
    /// changed.
    pub async fn resize(&self, from_bytes: u64, size_bytes: u64) -> Result<(), VolumeError> {
        check_size(size_bytes, self.bucket.block_bytes())?;
        let check = |state: &State| match state.size_bytes {
            found if found == from_bytes => Ok(()),
            found => Err(VolumeError::SizeChanged { expected: from_bytes, found }),
        };
        if from_bytes == size_bytes {
            self.log()?;
            check(&self.state())?;
            return self.flush().await;
        }
        let (kind, head) = record::resize_head(size_bytes, self.env.clock.now_ms());
        let change = |_: &Self, state: &mut State, _| {
            state.active.insert(zeros_between(from_bytes, size_bytes));
            state.size_bytes = size_bytes;
        };
        let end = self.append(kind, &head, Bytes::new(), check, change).await?;
        self.log()?.wait_appended(end).await?;
        self.want_cut(end);
        self.flush().await
    }

    /// How much is mapped from byte `start` to the volume's end, as of one moment. Reads pages of the map, up to a bound;
    /// one that is damaged is left out.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn mapped_from(&self, start: u64) -> Result<Mapped, VolumeError> {
        let block_bytes = u64::from(self.bucket.block_bytes());
        let located = {
            let state = self.state();
            if start >= state.size_bytes {
                return Ok(Mapped { bytes: 0, exact: true });
            }
            state.locate(start..state.size_bytes, None, block_bytes)
        };
        let Located { segments, unknown, root } = located;
        let known = segments.iter().filter(|segment| !matches!(segment.source, Source::Zero));
        let mut mapped =
            Mapped { bytes: known.map(|segment| segment.range.end - segment.range.start).sum(), exact: true };
        let gaps: Vec<_> = unknown.into_iter().map(|(bytes, _)| bytes).collect();
        // The bytes of the gaps within a range; those that end before it are passed over.
        let within = |from: u64, to: u64| -> u64 {
            let first = gaps.partition_point(|gap| gap.end <= from);
            let touched = gaps[first..].iter().take_while(|gap| gap.start < to);
            touched.map(|gap| gap.end.min(to) - gap.start.max(from)).sum()
        };
        let direct = Direct::new(self.bucket.clone());
        let wanted = |first: u64, last: u64| {
            let end = last.saturating_add(1).saturating_mul(block_bytes);
            within(first.saturating_mul(block_bytes), end) > 0
        };
        let mut walk = Walk::new(&direct, MapKind::Blocks, root.as_ref(), LOADS_MAX, wanted);
        let mut leaves = 0;
        while let Some((at, page)) = walk.next().await {
            match page.as_deref() {
                Ok(Page::Blocks(extents)) => {
                    let mapped_extents = extents.iter().filter(|extent| extent.target != Target::Hole);
                    let bytes = mapped_extents.map(|extent| {
                        within(extent.block * block_bytes, (extent.block + extent.count) * block_bytes)
                    });
                    mapped.bytes += bytes.sum::<u64>();
                }
                Ok(_) => {}
                Err(error) if error.is_damage() => mapped.exact = false,
                Err(error) => return Err(error.clone()),
            }
            leaves += usize::from(at.level == 0);
            if leaves == LEAVES_MAX {
                mapped.exact = false;
                break;
            }
        }
        Ok(mapped)
    }
}
