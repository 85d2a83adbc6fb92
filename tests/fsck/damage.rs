//! Every kind of damage to every kind of thing in the bucket, and what a check at each level must say of it.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use s3bd::{
    format::{
        index::MapKind,
        names,
        object::{FOOTER_BYTES, HEADER_BYTES},
    },
    fsck::{Finding, Level},
    store::memory::{Contents, Memory},
};
use wal::disk::sim::Prng;

use crate::{
    anatomy::{Anatomy, Part},
    volumes::{LEVELS, check_at, faults, kind, other_volume, rich},
};

/// What is done to a whole object of the bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Whole {
    Missing,
    Empty,
    CutShort,
    Flipped,
    /// As long as it was, of bytes that mean nothing.
    Garbage,
    /// By another one of its kind, of another volume where there is no other in this one.
    Replaced,
    /// By what it held, or what its predecessor held, earlier.
    Older,
}

/// What is done to a part of an object of blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Inside {
    FlippedFirst,
    FlippedLast,
    /// Bytes that mean nothing.
    Garbage,
    /// By the same part of another object.
    Replaced,
}

/// Which object of blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Which {
    /// With data, in the newest manifest's list.
    Listed,
    /// With data that is read, in the object table, without pages of the newest maps.
    Live,
    /// With pages of the newest maps, in the object table.
    Pages,
    /// That nothing names any more, in the object table.
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Damage {
    Header(Whole),
    Slot(Whole),
    Claim(Whole),
    NewestManifest(Whole),
    OlderManifest(Whole),
    Object(Which, Whole),
    ObjectHeader(Which, Inside),
    Frame(Which, Inside),
    Index(Which, Inside),
    Footer(Which, Inside),
    /// The index before the last one.
    Mirror(Which, Inside),
    /// Both.
    Indexes(Which, Inside),
    Page(MapKind, Height, Inside),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Height {
    Leaf,
    Root,
}

pub fn all() -> Vec<Damage> {
    use Damage::*;
    const INSIDE: [Inside; 4] =
        [Inside::FlippedFirst, Inside::FlippedLast, Inside::Garbage, Inside::Replaced];
    const WHOLE: [Whole; 6] =
        [Whole::Missing, Whole::Empty, Whole::CutShort, Whole::Flipped, Whole::Garbage, Whole::Replaced];
    const OBJECTS: [Which; 4] = [Which::Listed, Which::Live, Which::Pages, Which::Dead];
    let mut all = vec![NewestManifest(Whole::Older), OlderManifest(Whole::Older)];
    for whole in WHOLE {
        all.extend([Header(whole), Slot(whole), Claim(whole), NewestManifest(whole), OlderManifest(whole)]);
    }
    for which in OBJECTS {
        // A flipped bit of an object is one of a part of it.
        for whole in [Whole::Missing, Whole::Empty, Whole::CutShort, Whole::Garbage, Whole::Replaced] {
            all.push(Object(which, whole));
        }
        for inside in INSIDE {
            all.extend([ObjectHeader(which, inside), Index(which, inside), Footer(which, inside)]);
            all.extend([Mirror(which, inside), Indexes(which, inside)]);
            if which != Which::Pages {
                all.push(Frame(which, inside));
            }
        }
    }
    for inside in INSIDE {
        for page in [
            (MapKind::Blocks, Height::Leaf),
            (MapKind::Blocks, Height::Root),
            (MapKind::Objects, Height::Leaf),
        ] {
            all.push(Page(page.0, page.1, inside));
        }
    }
    all
}

impl Which {
    pub fn of(self, anatomy: &Anatomy) -> &Part {
        let is_data = |part: &Part| part.index.parts > 0 && part.index.frames.len() > 1;
        anatomy.object(|part| match self {
            Self::Listed => part.entry.is_none() && is_data(part) && !part.visible.is_empty(),
            Self::Live => part.entry.is_some() && part.pages.is_empty() && part.visible.len() > 1,
            Self::Pages => part.entry.is_some() && !part.pages.is_empty(),
            Self::Dead => part.entry.is_some_and(|entry| entry.live_bytes == 0) && is_data(part),
        })
    }

    /// An object for parts to be taken from.
    fn other(self, anatomy: &Anatomy) -> &Part {
        let this = self.of(anatomy);
        anatomy.object(|part| {
            part.name != this.name && part.bytes != this.bytes && !part.index.frames.is_empty()
        })
    }
}

impl Damage {
    /// The name of what it is done to.
    pub fn name(self, anatomy: &Anatomy) -> String {
        let last = |prefix, back: usize| {
            let names = anatomy.names(prefix);
            names[names.len() - 1 - back].clone()
        };
        match self {
            Self::Header(_) => names::HEADER.to_owned(),
            // Not the one that the check itself needs.
            Self::Slot(_) => names::slot(u32::MAX),
            Self::Claim(_) => last(names::CLAIMS, 0),
            Self::NewestManifest(_) => last(names::MANIFESTS, 0),
            Self::OlderManifest(_) => last(names::MANIFESTS, 3),
            Self::Object(which, _)
            | Self::ObjectHeader(which, _)
            | Self::Frame(which, _)
            | Self::Index(which, _)
            | Self::Footer(which, _)
            | Self::Mirror(which, _)
            | Self::Indexes(which, _) => which.of(anatomy).name.clone(),
            Self::Page(map, height, _) => page(anatomy, map, height).1.name.clone(),
        }
    }

    pub fn apply(self, anatomy: &Anatomy, stranger: &Contents) -> Contents {
        let mut contents = anatomy.contents.clone();
        let name = self.name(anatomy);
        match self {
            Self::Header(whole) => spoil(&mut contents, &name, whole, stranger.get(names::HEADER)),
            Self::Slot(whole) => {
                let slot = stranger.iter().find(|(name, _)| name.starts_with(names::KEYS));
                spoil(&mut contents, &name, whole, slot.map(|(_, bytes)| bytes));
            }
            Self::Claim(whole) => {
                let other = anatomy.names(names::CLAIMS)[0].clone();
                spoil(&mut contents, &name, whole, anatomy.contents.get(&other));
            }
            Self::NewestManifest(whole) | Self::OlderManifest(whole) => {
                let older = anatomy.names(names::MANIFESTS)[0].clone();
                spoil(&mut contents, &name, whole, anatomy.contents.get(&older));
            }
            Self::Object(which, whole) => {
                let other = &which.other(anatomy).name;
                spoil(&mut contents, &name, whole, anatomy.contents.get(other));
            }
            Self::ObjectHeader(which, inside) => {
                splice(&mut contents, which.of(anatomy), which.other(anatomy), inside, |_| 0..HEADER_BYTES);
            }
            Self::Frame(which, inside) => {
                let this = which.of(anatomy);
                let number = this.visible.first().copied().unwrap_or(0);
                let range = |part: &Part| part.frame_bytes(if part.name == this.name { number } else { 0 });
                splice(&mut contents, this, which.other(anatomy), inside, range);
            }
            Self::Index(which, inside) => {
                let range = |part: &Part| part.sealed_index.clone();
                splice(&mut contents, which.of(anatomy), which.other(anatomy), inside, range);
            }
            Self::Mirror(which, inside) => {
                let range = |part: &Part| part.mirror.clone();
                splice(&mut contents, which.of(anatomy), which.other(anatomy), inside, range);
            }
            Self::Indexes(which, inside) => {
                for range in [|part: &Part| part.mirror.clone(), |part: &Part| part.sealed_index.clone()] {
                    splice(&mut contents, which.of(anatomy), which.other(anatomy), inside, range);
                }
            }
            Self::Footer(which, inside) => {
                let range = |part: &Part| part.bytes as usize - FOOTER_BYTES..part.bytes as usize;
                splice(&mut contents, which.of(anatomy), which.other(anatomy), inside, range);
            }
            Self::Page(map, height, inside) => {
                let (number, this) = page(anatomy, map, height);
                let other = Which::Live.of(anatomy);
                let range = |part: &Part| part.frame_bytes(if part.name == this.name { number } else { 0 });
                splice(&mut contents, this, other, inside, range);
            }
        }
        contents
    }

    /// What a check must say beyond notes: kinds of findings, with the name of what they are about.
    fn expected(self, anatomy: &Anatomy, level: Level) -> BTreeSet<(&'static str, String)> {
        let quick = level == Level::Quick;
        let reads_data = !matches!(level, Level::Quick | Level::Default);
        let name = self.name(anatomy);
        let mut kinds = BTreeSet::new();
        match self {
            Self::Header(Whole::Missing) => return one("header_missing", ""),
            // A whole header of another volume: no slot fits it.
            Self::Header(Whole::Replaced) => return one("keys_unusable", ""),
            Self::Header(_) => return one("header_damaged", ""),
            // One password less; nothing says that it was there.
            Self::Slot(Whole::Missing) => {}
            Self::Slot(Whole::Replaced) => drop(kinds.insert("slot_foreign")),
            Self::Slot(_) => drop(kinds.insert("slot_damaged")),
            Self::Claim(Whole::Missing) => return one("claim_missing", ""),
            Self::Claim(_) => drop(kinds.insert("claim_damaged")),
            // An older state of the bucket, whole by itself: the host that wrote it knows better.
            Self::NewestManifest(Whole::Missing) => {}
            Self::OlderManifest(Whole::Missing) => drop(kinds.insert("manifest_missing")),
            Self::NewestManifest(_) | Self::OlderManifest(_) => drop(kinds.insert("manifest_damaged")),
            Self::Object(Which::Dead, whole)
                if !quick && !matches!(whole, Whole::Missing | Whole::Garbage) =>
            {
                kinds.insert("dead_object");
            }
            Self::Object(Which::Dead, _)
            | Self::ObjectHeader(Which::Dead, _)
            | Self::Frame(Which::Dead, _)
            | Self::Index(Which::Dead, _)
            | Self::Footer(Which::Dead, _)
            | Self::Mirror(Which::Dead, _)
            | Self::Indexes(Which::Dead, _) => {}
            Self::Object(which, Whole::Garbage) => {
                if !quick || which == Which::Listed {
                    kinds.insert("object_index");
                }
                if !quick {
                    kinds.insert("object_header");
                }
                if which == Which::Pages {
                    kinds.insert("page");
                }
                // What a listed object holds, its index alone says.
                if reads_data && which != Which::Listed && !which.of(anatomy).visible.is_empty() {
                    kinds.insert("frame");
                }
            }
            Self::Object(which, whole) => {
                let part = which.of(anatomy);
                // What is left of a cut object is whole; of all others nothing is.
                let end = if whole == Whole::CutShort { part.bytes / 2 } else { 0 };
                let within = |number: &u32| part.frame_bytes(*number).end as u64 <= end;
                let knows_length = !quick || which == Which::Listed;
                match whole {
                    _ if !knows_length => {}
                    Whole::Missing => drop(kinds.insert("object_missing")),
                    _ => drop(kinds.insert("object_length")),
                }
                if !knows_length && !part.pages.iter().all(within) {
                    kinds.insert("page");
                }
            }
            Self::ObjectHeader(..) if quick => {}
            Self::ObjectHeader(..) => drop(kinds.insert("object_header")),
            Self::Frame(..) if reads_data => drop(kinds.insert("frame")),
            Self::Frame(..) => {}
            Self::Index(which, _)
            | Self::Footer(which, _)
            | Self::Mirror(which, _)
            | Self::Indexes(which, _)
                if quick && which != Which::Listed => {}
            Self::Index(..) | Self::Footer(..) | Self::Indexes(..) => drop(kinds.insert("object_index")),
            Self::Mirror(..) => drop(kinds.insert("object_mirror")),
            Self::Page(..) => drop(kinds.insert("page")),
        }
        kinds.into_iter().map(|kind| (kind, name.clone())).collect()
    }
}

fn one(kind: &'static str, name: &str) -> BTreeSet<(&'static str, String)> {
    BTreeSet::from([(kind, name.to_owned())])
}

fn page(anatomy: &Anatomy, map: MapKind, height: Height) -> (u32, &Part) {
    let root = anatomy.newest.roots.blocks.unwrap();
    let (page, part) = anatomy.page(|page| {
        page.map == map
            && match height {
                Height::Leaf => page.level == 0,
                Height::Root => page.level == root.level,
            }
    });
    (page.frame.number, part)
}

fn flip(bytes: &mut [u8], at: usize) {
    bytes[at] ^= 4;
}

/// The same at each run.
fn fill(bytes: &mut [u8]) {
    let mut prng = Prng::new(bytes.len() as u64);
    bytes.iter_mut().for_each(|byte| *byte = prng.next_u64() as u8);
}

fn spoil(contents: &mut Contents, name: &str, whole: Whole, other: Option<&bytes::Bytes>) {
    let mut bytes = contents.get(name).expect("it is there").to_vec();
    let length = bytes.len();
    match whole {
        Whole::Missing => {
            contents.remove(name);
            return;
        }
        Whole::Empty => bytes.clear(),
        Whole::CutShort => bytes.truncate(length / 2),
        Whole::Garbage => fill(&mut bytes),
        Whole::Flipped => flip(&mut bytes, length / 2),
        Whole::Replaced | Whole::Older => bytes = other.expect("there is another").to_vec(),
    }
    assert_ne!(contents.get(name).unwrap(), &bytes);
    contents.set(name, bytes.into());
}

/// Damages a part of an object; its length stays.
fn splice(
    contents: &mut Contents,
    this: &Part,
    other: &Part,
    inside: Inside,
    range: impl Fn(&Part) -> Range<usize>,
) {
    let mut bytes = contents.get(&this.name).unwrap().to_vec();
    let place = range(this);
    match inside {
        Inside::FlippedFirst => flip(&mut bytes, place.start),
        Inside::FlippedLast => flip(&mut bytes, place.end - 1),
        Inside::Garbage => fill(&mut bytes[place]),
        Inside::Replaced => {
            let donor = contents.get(&other.name).unwrap().slice(range(other));
            let length = place.len().min(donor.len());
            bytes[place.start..place.start + length].copy_from_slice(&donor[..length]);
        }
    }
    assert_ne!(contents.get(&this.name).unwrap(), &bytes);
    contents.set(&this.name, bytes.into());
}

/// What a finding is about, for comparison.
fn subject(finding: &Finding) -> String {
    let json = serde_json::to_value(finding).unwrap();
    let name = json["name"].as_str().or(json["at"]["object"].as_str());
    name.unwrap_or_default().to_owned()
}

#[tokio::test(start_paused = true)]
async fn each_damage_gives_exactly_its_finding() {
    let store = rich().await;
    let anatomy = Anatomy::of(&store).await;
    let stranger = other_volume().await.snapshot();
    for damage in all() {
        let damaged = Memory::new();
        damaged.restore(damage.apply(&anatomy, &stranger));
        for level in LEVELS {
            let report = check_at(Arc::new(damaged.clone()), level).await;
            let faults = faults(&report);
            let found: BTreeSet<_> = faults.iter().map(|finding| (kind(finding), subject(finding))).collect();
            let expected = damage.expected(&anatomy, level);
            let expected: BTreeSet<_> =
                expected.into_iter().map(|(kind, name)| (kind.to_owned(), name)).collect();
            assert_eq!(found, expected, "{damage:?} at {level:?}: {report:#?}");
            let is_sound = expected.iter().all(|(kind, _)| kind == "dead_object");
            assert_eq!(report.is_sound(), is_sound, "{damage:?} at {level:?}");
            for finding in &report.findings {
                if let Finding::ObjectIndex { mirrored, .. } = finding {
                    assert_eq!(
                        *mirrored,
                        matches!(damage, Damage::Index(..) | Damage::Footer(..)),
                        "{damage:?}"
                    );
                }
            }
        }
    }
}
