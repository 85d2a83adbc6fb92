//! Plans in words, for the question whether they are to be carried out.

use super::plan::{Plan, Step, object_of};
use crate::{
    format::{ids::FrameRef, index::MapKind, names},
    fsck::{Blocks, detail::FrameAt, finding::object_name},
    map::tree::PageAt,
    volume::{tally, walk::Copy},
};

/// The frames of one object that share a fate.
struct Frames<'a> {
    step: &'a Step,
    object: String,
    count: u64,
    blocks: Blocks,
}

impl Plan {
    /// A line for each object and each page, and for what is left as it is.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut frames: Option<Frames<'_>> = None;
        for step in &self.steps {
            let (at, blocks) = match step {
                Step::Rewrite { at, blocks, .. } | Step::MarkLost { at, blocks } => (at, blocks),
                Step::MovePage { page, copy } => {
                    lines.push(format!("{}: written anew from {}", page_text(page), place(*copy)));
                    continue;
                }
                Step::EarlierMaps { maps } => {
                    lines.push(format!(
                        "the maps: made once more, from those of {} and the objects since",
                        names::manifest(maps.manifest.generation, maps.manifest.epoch)
                    ));
                    continue;
                }
                Step::PutBack { known } => {
                    lines.push(format!(
                        "{}: put back as it was written, with its header and both of its indexes, out of what is whole of it",
                        object_of(known)
                    ));
                    continue;
                }
                Step::Checkpoint { objects } => {
                    let are = if objects.len() == 1 { "is" } else { "are" };
                    lines.push(format!(
                        "the maps: a checkpoint, so that the index of {} {are} not needed to open the volume",
                        objects.join(", ")
                    ));
                    continue;
                }
                Step::ReleasePin { snapshot, clone, .. } => {
                    lines.push(format!(
                        "snapshot {snapshot:?}: not kept any more for {clone}, which is not there"
                    ));
                    continue;
                }
                Step::RemoveUnfinished => {
                    lines.push(format!("{}: removed", names::HEADER_UNFINISHED));
                    continue;
                }
                Step::LosePage { page, run } => {
                    let mut lost = Blocks::default();
                    lost.add(*run);
                    lines.push(format!(
                        "{}: no whole copy: {lost}, but for what newer objects bring, {LOST}; s3bd recover --fall-back \
                         --dry-run says what going back to a whole epoch loses instead",
                        page_text(page)
                    ));
                    continue;
                }
            };
            let object = name(at);
            match &mut frames {
                Some(frames) if frames.object == object && same_fate(frames.step, step) => {
                    frames.count += 1;
                    frames.blocks.extend(blocks);
                }
                _ => {
                    let next = Frames { step, object, count: 1, blocks: blocks.clone() };
                    lines.extend(frames.replace(next).map(Frames::line));
                }
            }
        }
        lines.extend(frames.map(Frames::line));
        let left = self.left.iter().map(|left| format!("left as it is: {}: {}", left.text, left.remedy));
        lines.extend(left);
        lines
    }
}

const LOST: &str = "become unreadable until they are overwritten";

impl Frames<'_> {
    fn line(self) -> String {
        let Self { step, object, count, blocks } = self;
        let frames = tally::count(count, "frame");
        match step {
            Step::Rewrite { copy, .. } => {
                format!("{object}: {frames}: {blocks} written anew from {}", place(*copy))
            }
            _ => format!("{object}: {frames} without a whole copy: {blocks} {LOST}"),
        }
    }
}

fn same_fate(one: &Step, other: &Step) -> bool {
    match (one, other) {
        (Step::Rewrite { copy: one, .. }, Step::Rewrite { copy: other, .. }) => one == other,
        (Step::MarkLost { .. }, Step::MarkLost { .. }) => true,
        _ => false,
    }
}

fn name(frame: &FrameRef) -> String {
    object_name((frame.object.generation, frame.object.sequence))
}

fn place(copy: Copy) -> &'static str {
    match copy {
        Copy::Bucket => "the object itself",
        Copy::Cache => "this host's cache",
    }
}

fn page_text(page: &PageAt) -> String {
    let map = match page.map {
        MapKind::Blocks => "the block map",
        MapKind::Objects => "the object table",
        MapKind::Snapshots => "the snapshot table",
    };
    format!("{}: a page of {map}, level {}", FrameAt::from(&page.frame), page.level)
}
