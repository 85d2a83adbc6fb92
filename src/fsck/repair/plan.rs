//! The plan of a repair: a pure function of what was found and of the copies there are.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};

use super::{original::Known, survey::Survey};
use crate::{
    format::{
        ids::{Epoch, FrameRef, Generation, Sequence, VolumeId},
        index::{MapKind, Run},
        names,
    },
    fsck::{Blocks, Finding, Report, Severity, detail::FrameAt, finding::object_name, remedy::Remedy},
    map::tree::{PageAt, last_key},
    volume::{earlier::EarlierMaps, walk::Copy},
};

/// More blocks than this are not marked as lost for one page: each 512 of them are a page of their own, and a volume
/// of which so much is gone is better gone back with.
const LOST_BLOCKS_MAX: u64 = 1 << 27;

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Blocks are written anew from a whole copy of their frame.
    Rewrite {
        /// The frame.
        #[serde(serialize_with = "as_place")]
        at: FrameRef,
        /// Where the copy is.
        copy: Copy,
        /// The blocks that are read from it.
        blocks: Blocks,
    },
    /// Blocks of a frame without a whole copy become errors until they are overwritten.
    MarkLost {
        /// The frame.
        #[serde(serialize_with = "as_place")]
        at: FrameRef,
        /// The blocks.
        blocks: Blocks,
    },
    /// A page of a map is written anew from a whole copy.
    MovePage {
        /// The page.
        #[serde(flatten, serialize_with = "as_page")]
        page: PageAt,
        /// Where the copy is.
        copy: Copy,
    },
    /// The newest checkpoint, of which a page has no whole copy, is made once more, from the one of an earlier manifest and the
    /// objects since.
    EarlierMaps {
        /// Those maps, by the name of the manifest.
        #[serde(rename = "manifest", serialize_with = "as_manifest")]
        maps: Box<EarlierMaps>,
    },
    /// An object is put back under its own name, as it was uploaded: all that is damaged of it is known from what is whole.
    PutBack {
        /// Which.
        #[serde(rename = "name", serialize_with = "as_object")]
        known: Known,
    },
    /// A checkpoint is made: what the newest manifest lists is in the maps then, and no index is needed to open the volume.
    Checkpoint {
        /// The objects with a damaged index, or a damaged mirror of it.
        objects: Vec<String>,
    },
    /// A snapshot is not kept any more for a clone that is not there.
    ReleasePin {
        /// The snapshot's name.
        snapshot: String,
        /// The clone's name.
        clone: String,
        /// The clone's id.
        #[serde(serialize_with = "as_id")]
        volume: VolumeId,
    },
    /// The header's name while the volume was made goes.
    RemoveUnfinished,
    /// All blocks that only a page without a whole copy would lead to become errors until they are overwritten.
    LosePage {
        /// The page.
        #[serde(flatten, serialize_with = "as_page")]
        page: PageAt,
        /// The blocks that it covers; those that newer objects bring stay as they are.
        run: Run,
    },
}

fn as_place<S: Serializer>(frame: &FrameRef, serializer: S) -> Result<S::Ok, S::Error> {
    FrameAt::from(frame).serialize(serializer)
}

pub(super) fn object_of(known: &Known) -> String {
    object_name((known.object.generation, known.object.sequence))
}

fn as_object<S: Serializer>(known: &Known, serializer: S) -> Result<S::Ok, S::Error> {
    object_of(known).serialize(serializer)
}

fn as_manifest<S: Serializer>(maps: &EarlierMaps, serializer: S) -> Result<S::Ok, S::Error> {
    names::manifest(maps.manifest.generation, maps.manifest.epoch).serialize(serializer)
}

fn as_id<S: Serializer>(volume: &VolumeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(volume)
}

#[derive(Serialize)]
struct Page {
    at: FrameAt,
    map: MapKind,
    level: u8,
    first_key: u64,
}

fn as_page<S: Serializer>(page: &PageAt, serializer: S) -> Result<S::Ok, S::Error> {
    let PageAt { frame, map, level, first_key } = *page;
    Page { at: (&frame).into(), map, level, first_key }.serialize(serializer)
}

/// Something found that the plan leaves as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The finding, in words.
    pub text: String,
    /// What can be done about it instead.
    pub remedy: Remedy,
}

/// What a repair would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The epoch that it was made from: for no other is it carried out.
    pub epoch: Epoch,
    /// The tenure that published it.
    pub generation: Generation,
    /// In the order in which they are done.
    pub steps: Vec<Step>,
    /// What it leaves as it is.
    pub left: Vec<Left>,
}

/// What is not where it should be, by findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    pub(super) objects: BTreeSet<(Generation, Sequence)>,
    /// Those of them that are as long as they were, and damaged in header, index or mirror.
    pub(super) parts: BTreeSet<(Generation, Sequence)>,
    pub(super) frames: BTreeMap<(Generation, Sequence), BTreeSet<u32>>,
}

impl Suspects {
    /// Those that a repair can do something about.
    #[must_use]
    pub fn of(findings: &[Finding]) -> Self {
        let mut suspects = Self::default();
        for finding in findings.iter().filter(|finding| finding.remedy().is_repair()) {
            match finding {
                Finding::ObjectMissing { name, .. } | Finding::ObjectLength { name, .. } => {
                    suspects.objects.extend(names::parse_object(name));
                }
                Finding::ObjectHeader { name, .. }
                | Finding::ObjectIndex { name, .. }
                | Finding::ObjectMirror { name, .. } => {
                    let object = names::parse_object(name);
                    suspects.objects.extend(object);
                    suspects.parts.extend(object);
                }
                Finding::Frame { at, .. } | Finding::Page { at, .. } => {
                    if let Some(object) = names::parse_object(&at.object) {
                        suspects.frames.entry(object).or_default().insert(at.frame);
                    }
                }
                _ => {}
            }
        }
        suspects
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.frames.is_empty()
    }

    /// Whether `frame` is one of them, or in an object that is.
    #[must_use]
    pub fn contains(&self, frame: &FrameRef) -> bool {
        let object = (frame.object.generation, frame.object.sequence);
        self.objects.contains(&object)
            || self.frames.get(&object).is_some_and(|frames| frames.contains(&frame.number))
    }
}

/// Makes the plan for what a check found. Where something keeps the volume from being opened, there are no steps.
#[must_use]
pub fn plan(report: &Report, survey: &Survey) -> Plan {
    let mut plan =
        Plan { epoch: survey.epoch, generation: survey.generation, steps: Vec::new(), left: Vec::new() };
    let mut blocked = false;
    for finding in &report.findings {
        let remedy = finding.remedy();
        blocked |=
            matches!(remedy, Remedy::Recover | Remedy::Scan | Remedy::Restore | Remedy::AcceptRollback);
        if finding.severity() > Severity::Note && !remedy.is_repair() {
            plan.left.push(Left { text: finding.to_string(), remedy });
        }
    }
    if blocked {
        let wait = |finding: &Finding| Left { text: finding.to_string(), remedy: finding.remedy() };
        let repairable = report.findings.iter().filter(|finding| finding.remedy().is_repair());
        plan.left.extend(repairable.map(wait));
        return plan;
    }
    // Before all else: frames and pages are those of these maps.
    plan.steps.extend(survey.earlier.clone().map(|maps| Step::EarlierMaps { maps: Box::new(maps) }));
    // Then pages: what lies below one that is lost is not to be looked up any more.
    for found in &survey.pages {
        plan.add_page(found.page, found.copy, survey.size_blocks);
    }
    for found in &survey.frames {
        let (at, blocks) = (found.frame, found.blocks.clone());
        plan.steps.push(match found.copy {
            Some(copy) => Step::Rewrite { at, copy, blocks },
            None => Step::MarkLost { at, blocks },
        });
    }
    plan.steps.extend(survey.originals.iter().map(|known| Step::PutBack { known: *known }));
    let put_back: BTreeSet<_> = survey.originals.iter().map(object_of).collect();
    let objects: Vec<_> =
        report.findings.iter().filter_map(listed_index).filter(|name| !put_back.contains(name)).collect();
    if !objects.is_empty() {
        plan.steps.push(Step::Checkpoint { objects });
    }
    plan.steps.extend(report.findings.iter().filter_map(leftover));
    plan.leave(report, survey);
    plan
}

/// A listed object of which one of the two indexes is damaged.
fn listed_index(finding: &Finding) -> Option<String> {
    match finding {
        Finding::ObjectIndex { name, listed: true, .. }
        | Finding::ObjectMirror { name, listed: true, .. } => Some(name.clone()),
        _ => None,
    }
}

/// What clears something that nothing depends on.
fn leftover(finding: &Finding) -> Option<Step> {
    match finding.clone() {
        Finding::PinStale { snapshot, clone, volume } => Some(Step::ReleasePin { snapshot, clone, volume }),
        Finding::UnfinishedLeft => Some(Step::RemoveUnfinished),
        _ => None,
    }
}

impl Plan {
    /// Leaves damaged parts of objects that are not put back, and of which the newest maps have nothing to be written anew.
    fn leave(&mut self, report: &Report, survey: &Survey) {
        // Of those, earlier maps say nothing: what they do not name dies with them.
        if survey.earlier.is_some() {
            return;
        }
        let frames = survey.frames.iter().map(|found| found.frame.object);
        let mapped = frames.chain(survey.pages.iter().map(|found| found.page.frame.object));
        let mapped = mapped.map(|object| object_name((object.generation, object.sequence)));
        let mended: BTreeSet<_> = survey.originals.iter().map(object_of).chain(mapped).collect();
        for finding in &report.findings {
            if let Finding::ObjectHeader { name, .. }
            | Finding::ObjectIndex { name, listed: false, .. }
            | Finding::ObjectMirror { name, listed: false, .. } = finding
                && !mended.contains(name)
            {
                self.left.push(Left { text: finding.to_string(), remedy: Remedy::Snapshots });
            }
        }
    }

    fn add_page(&mut self, page: PageAt, copy: Option<Copy>, size_blocks: u64) {
        if let Some(copy) = copy {
            self.steps.push(Step::MovePage { page, copy });
            return;
        }
        let end = last_key(page.level, page.first_key).min(size_blocks.saturating_sub(1));
        let count = end.saturating_sub(page.first_key).saturating_add(1);
        if page.map == MapKind::Blocks && count <= LOST_BLOCKS_MAX {
            self.steps.push(Step::LosePage { page, run: Run { block: page.first_key, count } });
            return;
        }
        let map = match page.map {
            MapKind::Blocks => "the block map",
            MapKind::Objects => "the object table",
            MapKind::Snapshots => "the snapshot table",
        };
        let keys = format!("level {}, keys {} to {end}", page.level, page.first_key);
        let text = format!("{}: a page of {map} ({keys}) has no whole copy", FrameAt::from(&page.frame));
        self.left.push(Left { text, remedy: Remedy::FallBack });
    }

    /// Blocks that it writes anew, and blocks that it marks as lost.
    #[must_use]
    pub fn blocks(&self) -> (u64, u64) {
        self.steps.iter().fold((0, 0), |(anew, lost), step| match step {
            Step::Rewrite { blocks, .. } => (anew + blocks.count, lost),
            Step::MarkLost { blocks, .. } => (anew, lost + blocks.count),
            Step::MovePage { .. }
            | Step::EarlierMaps { .. }
            | Step::PutBack { .. }
            | Step::Checkpoint { .. }
            | Step::ReleasePin { .. }
            | Step::RemoveUnfinished => (anew, lost),
            Step::LosePage { run, .. } => (anew, lost + run.count),
        })
    }
}
