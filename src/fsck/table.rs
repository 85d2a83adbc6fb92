//! The object table: each entry by itself and against the bucket's listing, and all of them against what the maps name.

use std::collections::BTreeMap;

use futures::stream::{StreamExt, TryStreamExt};

use super::{
    Blocks, Check, Finding, Level, Stage,
    detail::{EntryProblem, Total},
    finding::object_name,
    line::Head,
    listed::Listed,
    listing::{Listing, NAMES_MAX},
    object::{Found, Known, look},
};
use crate::{
    format::{
        ids::{Epoch, FrameRef, Generation, ObjectRef, Sequence, VolumeId},
        index::{MapKind, Run},
        manifest::{Manifest, Snapshot},
        names,
        page::{ObjectInfo, Page},
    },
    store,
    volume::{error::VolumeError, walk::Walk},
};

/// Entries that share a piece of the ledger.
const CHUNK: u64 = 512;

/// Live bytes of 512 objects in a row: those in the table, less those that the maps name.
struct Chunk {
    known: [u64; CHUNK as usize / 64],
    left: [i64; CHUNK as usize],
}

/// The table's account of every object, from which is taken what the maps name. What is left at the end is wrong.
pub(super) struct Ledger {
    own: VolumeId,
    chunks: BTreeMap<u64, Box<Chunk>>,
    /// First number of each tenure.
    tenures: Vec<(Sequence, Generation)>,
    listed: BTreeMap<Sequence, Generation>,
    unknown: BTreeMap<(Generation, Sequence), (u64, Blocks)>,
    /// Every page of the table could be read.
    pub(super) table_whole: bool,
    /// And every page of the block map.
    pub(super) map_whole: bool,
    /// Blocks that the block map names.
    pub(super) mapped_blocks: u64,
}

impl Ledger {
    fn new(own: VolumeId, listed: &Listed) -> Self {
        Self {
            own,
            chunks: BTreeMap::new(),
            tenures: Vec::new(),
            listed: listed.objects.iter().map(|(sequence, object)| (*sequence, object.generation)).collect(),
            unknown: BTreeMap::new(),
            table_whole: true,
            map_whole: true,
            mapped_blocks: 0,
        }
    }

    fn place(sequence: Sequence) -> (u64, usize) {
        (sequence.0 / CHUNK, (sequence.0 % CHUNK) as usize)
    }

    /// Takes an entry; one that is out of order says nothing about the tenures.
    fn enter(&mut self, sequence: Sequence, info: &ObjectInfo, in_order: bool) {
        if in_order && self.tenures.last().is_none_or(|tenure| tenure.1 != info.generation) {
            self.tenures.push((sequence, info.generation));
        }
        let (chunk, at) = Self::place(sequence);
        let chunk = self.chunks.entry(chunk).or_insert_with(|| {
            Box::new(Chunk { known: [0; CHUNK as usize / 64], left: [0; CHUNK as usize] })
        });
        chunk.known[at / 64] |= 1 << (at % 64);
        chunk.left[at] = chunk.left[at].saturating_add_unsigned(info.live_bytes);
    }

    fn tenure_of(&self, sequence: Sequence) -> Option<Generation> {
        let after = self.tenures.partition_point(|tenure| tenure.0 <= sequence);
        self.tenures.get(after.checked_sub(1)?).map(|tenure| tenure.1)
    }

    /// The maps name `bytes` of plaintext in an object; `false` where it should be in table or list, and is not.
    fn take(&mut self, object: &ObjectRef, bytes: u64) -> bool {
        // Other volumes' objects are theirs to account for.
        if object.owner != self.own || self.listed.get(&object.sequence) == Some(&object.generation) {
            return true;
        }
        let tenure = self.tenure_of(object.sequence);
        let (chunk, at) = Self::place(object.sequence);
        let known = self.chunks.get_mut(&chunk).filter(|chunk| chunk.known[at / 64] >> (at % 64) & 1 == 1);
        let Some(chunk) = known.filter(|_| tenure == Some(object.generation)) else { return false };
        chunk.left[at] = chunk.left[at].saturating_sub_unsigned(bytes);
        true
    }

    /// A map has a page in `frame`.
    pub(super) fn take_page(&mut self, frame: &FrameRef) {
        if !self.take(&frame.object, frame.plain_bytes.into()) {
            self.unknown(frame).0 += 1;
        }
    }

    /// The block map has `run` in `frame`.
    pub(super) fn take_run(&mut self, frame: &FrameRef, run: Run, block_bytes: u64) {
        if !self.take(&frame.object, run.count.saturating_mul(block_bytes)) {
            self.unknown(frame).1.add(run);
        }
    }

    fn unknown(&mut self, frame: &FrameRef) -> &mut (u64, Blocks) {
        self.unknown.entry((frame.object.generation, frame.object.sequence)).or_default()
    }

    /// What does not agree, where all that is needed to say so could be read.
    fn findings(self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if !self.table_whole {
            return findings;
        }
        for (name, (pages, blocks)) in &self.unknown {
            let name = object_name(*name);
            findings.push(Finding::ObjectUnknown { name, pages: *pages, blocks: blocks.clone() });
        }
        if !self.map_whole {
            return findings;
        }
        for (chunk, entries) in &self.chunks {
            let wrong = entries.left.iter().enumerate().filter(|(_, left)| **left != 0);
            findings.extend(wrong.filter_map(|(at, left)| {
                let sequence = Sequence(chunk * CHUNK + at as u64);
                // Without a tenure it has no name; its entry, out of order, has been named.
                let name = object_name((self.tenure_of(sequence)?, sequence));
                Some(Finding::LiveBytes { name, excess_bytes: left.saturating_neg() })
            }));
        }
        findings
    }
}

/// Objects in the bucket that nothing names.
#[derive(Default)]
struct Strays {
    objects: u64,
    bytes: u64,
    first: Option<String>,
    written_ms: Option<(u64, u64)>,
}

impl Strays {
    fn add(&mut self, line: store::Listed) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(line.bytes);
        let (oldest, newest) = self.written_ms.unwrap_or((u64::MAX, 0));
        self.written_ms = Some((oldest.min(line.modified_ms), newest.max(line.modified_ms)));
        self.first.get_or_insert(line.key);
    }
}

/// What an entry says that cannot be; `before` is the tenure of the entry before it.
fn judge(
    sequence: Sequence,
    info: &ObjectInfo,
    manifest: &Manifest,
    before: Option<Generation>,
) -> Vec<EntryProblem> {
    let dead = info.died.is_some();
    let problems = [
        (before > Some(info.generation), EntryProblem::GenerationDescends),
        (info.generation > manifest.generation, EntryProblem::GenerationAhead),
        (sequence >= manifest.next_sequence, EntryProblem::NumberTooHigh),
        (info.born > manifest.roots.epoch, EntryProblem::BornLater),
        (info.died.is_some_and(|died| died < info.born), EntryProblem::DiedEarlier),
        (dead && info.live_bytes > 0, EntryProblem::DeadAndAlive),
        (!dead && info.live_bytes == 0, EntryProblem::NeitherDeadNorAlive),
        (info.live_bytes > info.plain_bytes, EntryProblem::LiveBytes),
    ];
    problems.into_iter().filter(|(is_so, _)| *is_so).map(|(_, problem)| problem).collect()
}

/// Whether the newest epoch or a snapshot needs an object.
fn is_needed(info: &ObjectInfo, snapshots: &[Snapshot]) -> bool {
    let Some(died) = info.died else { return true };
    snapshots.iter().any(|snapshot| info.born <= snapshot.epoch && snapshot.roots_epoch < died)
}

/// A pass over the table.
struct TablePass<'a> {
    manifest: &'a Manifest,
    listed: &'a Listed,
    snapshots: &'a [Snapshot],
    /// What died up to here may be deleted.
    horizon: Epoch,
    ledger: Ledger,
    before: Option<Generation>,
    /// None where the bucket is not looked at.
    listing: Option<Listing>,
    strays: Strays,
}

impl Check<'_> {
    /// Reads the object table; with anything but a quick check, beside a listing of the bucket, and looks at each
    /// object.
    pub(super) async fn check_table(
        &mut self,
        head: &Head,
        listed: &Listed,
        snapshots: &[Snapshot],
    ) -> Result<Ledger, VolumeError> {
        let manifest = &head.manifest;
        self.progress.begin(Stage::Objects, Some(manifest.totals.objects));
        self.progress.advance(listed.objects.len() as u64);
        let quick = self.options.level == Level::Quick;
        let mut pass = TablePass {
            manifest,
            listed,
            snapshots,
            horizon: head.horizon(),
            ledger: Ledger::new(self.bucket().header.volume, listed),
            before: None,
            listing: (!quick).then(|| Listing::new(self.bucket().store.clone(), NAMES_MAX)),
            strays: Strays::default(),
        };
        let direct = self.direct.clone();
        let root = manifest.roots.objects.as_ref();
        let mut walk = Walk::new(&direct, MapKind::Objects, root, self.loads_max(), |_, _| true);
        while let Some((at, page)) = walk.next().await {
            self.own_pages.push(at.frame);
            match self.take_page(at, page)?.as_deref() {
                None => pass.ledger.table_whole = false,
                Some(Page::Objects(entries)) => self.check_entries(&mut pass, entries).await?,
                Some(_) => {}
            }
        }
        let TablePass { mut ledger, mut listing, mut strays, .. } = pass;
        if let Some(listing) = &mut listing {
            while let Some(line) = listing.next_if(|_| true).await? {
                note_stray(&mut strays, listed, line);
            }
        }
        if ledger.table_whole {
            self.add_strays(strays);
        }
        std::mem::take(&mut self.own_pages).iter().for_each(|frame| ledger.take_page(frame));
        Ok(ledger)
    }

    /// The entries of one page of the table.
    async fn check_entries(
        &mut self,
        pass: &mut TablePass<'_>,
        entries: &[(Sequence, ObjectInfo)],
    ) -> Result<(), VolumeError> {
        let mut looks = Vec::new();
        for (sequence, info) in entries {
            let known = Known::of_entry(self.bucket().header.volume, *sequence, info);
            self.report.counts.objects += 1;
            self.report.counts.object_bytes = self.report.counts.object_bytes.saturating_add(info.bytes);
            let mut problems = judge(*sequence, info, pass.manifest, pass.before);
            if pass.listed.objects.contains_key(sequence) {
                problems.push(EntryProblem::AlsoListed);
            }
            let disorder = [EntryProblem::GenerationDescends, EntryProblem::GenerationAhead];
            let in_order = !problems.iter().any(|problem| disorder.contains(problem));
            for problem in problems {
                self.add(Finding::TableEntry { name: object_name(known.name()), problem });
            }
            pass.ledger.enter(*sequence, info, in_order);
            if in_order {
                pass.before = Some(info.generation);
            }
            if self.is_there(pass, &known, info, in_order).await? {
                looks.push(known);
            }
        }
        self.look_at(&looks).await?;
        self.progress.advance(entries.len() as u64);
        Ok(())
    }

    /// Whether the object of an entry is to be looked at: the listing has it, and it is needed. Notes one that is missing or
    /// of another length otherwise.
    async fn is_there(
        &mut self,
        pass: &mut TablePass<'_>,
        known: &Known,
        info: &ObjectInfo,
        in_order: bool,
    ) -> Result<bool, VolumeError> {
        let Some(listing) = &mut pass.listing else { return Ok(false) };
        let name = object_name(known.name());
        let found = if in_order {
            while let Some(line) = listing.next_if(|line| line.key < name).await? {
                note_stray(&mut pass.strays, pass.listed, line);
            }
            listing.next_if(|line| line.key == name).await?.map(|line| line.bytes)
        } else {
            self.bucket().store.head(&name).await?
        };
        let needed = is_needed(info, pass.snapshots);
        match found {
            Some(_) if needed => return Ok(true),
            Some(found) if found == info.bytes => {}
            None if !needed && info.died.is_some_and(|died| died <= pass.horizon) => {
                self.report.counts.collected += 1;
            }
            None if !needed => self.dead_missing.push(name),
            found if !needed => self.add(Finding::DeadObject { name, found }),
            _ => self.lost.object(self.direct.bucket.header.volume, known.name(), None, info.bytes, false),
        }
        Ok(false)
    }

    /// Lengths, headers and indexes of objects of the table.
    async fn look_at(&mut self, known: &[Known]) -> Result<(), VolumeError> {
        let direct = self.direct.clone();
        let bucket = &direct.bucket;
        let own = bucket.header.volume;
        let looks = known.iter().map(|known| async move {
            let found = look(bucket, known, true).await?;
            Ok::<_, VolumeError>((known, found))
        });
        let mut looks = futures::stream::iter(looks).buffered(self.loads_max()).boxed();
        while let Some((known, found)) = looks.try_next().await? {
            let lost = match found {
                Found::Here(_, findings) => {
                    findings.into_iter().for_each(|finding| self.report.add(finding));
                    continue;
                }
                Found::Other(remnant) => Some(remnant),
                // Since it was listed: perhaps it was collected.
                Found::Missing => None,
            };
            self.lost.object(own, known.name(), lost, known.bytes, false);
        }
        Ok(())
    }

    fn add_strays(&mut self, strays: Strays) {
        let Strays { objects, bytes, first, written_ms } = strays;
        self.report.counts.strays = objects;
        self.report.counts.stray_bytes = bytes;
        if let (Some(first), Some(written_ms)) = (first, written_ms) {
            self.add(Finding::Strays { objects, bytes, first, written_ms });
        }
    }

    /// At the end: what the table, the list and the maps say of each other.
    pub(super) fn settle(&mut self, manifest: &Manifest, ledger: Ledger) {
        let counts = self.report.counts;
        let totals = [
            (Total::Objects, manifest.totals.objects, counts.objects, ledger.table_whole),
            (Total::ObjectBytes, manifest.totals.object_bytes, counts.object_bytes, ledger.table_whole),
            (Total::MappedBlocks, manifest.totals.mapped_blocks, ledger.mapped_blocks, ledger.map_whole),
        ];
        for (total, manifest, counted, whole) in totals {
            if whole && manifest != counted {
                self.add(Finding::Totals { total, manifest, counted });
            }
        }
        ledger.findings().into_iter().for_each(|finding| self.add(finding));
    }
}

/// A line of the listing that no entry has: the newest manifest's list may.
fn note_stray(strays: &mut Strays, listed: &Listed, line: store::Listed) {
    let name = names::parse_object(&line.key);
    let known = name.and_then(|(generation, sequence)| {
        listed.objects.get(&sequence).filter(|object| object.generation == generation)
    });
    if known.is_none() {
        strays.add(line);
    }
}
