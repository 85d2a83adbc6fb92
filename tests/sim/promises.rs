//! The oracle: what each tenure wrote, in order, and how far the promises reach.
//!
//! # Overview
//! A *point* is a content of the volume after one change. A tenure's *line* is the points that it went through, the
//! first ones taken over from the tenure whose manifest it started from. `durable` are the points of the one winning
//! history that somebody was told are in the bucket; it only grows, and whoever adds to it must continue it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use s3bd::{
    format::{manifest::Digest, names},
    store::memory::Contents,
    volume::bucket::digest,
};
use wal::Lsn;

use crate::{
    journal::Journal,
    snapshots::{Known, Snapshots},
};

/// Generation and nonce.
pub type Key = (u64, u64);

/// Content after one change.
#[derive(Clone, Debug)]
pub struct Point {
    id: u64,
    image: Arc<Vec<u8>>,
    /// Where the change ends in the log of the tenure that made it.
    end: Option<Lsn>,
    /// No object tells of the change, until there is another cut or a checkpoint.
    is_of_manifest: bool,
}

/// A tenure that served.
#[derive(Clone, Debug)]
pub struct Tenure {
    /// Host, for people and for its own promises.
    pub host: usize,
    line: Vec<Point>,
    /// Index of the last point that was acknowledged.
    pub acknowledged: usize,
    /// Index of the last point that is on the local disk.
    pub flushed: usize,
}

/// The bucket right after one change to it.
#[derive(Debug)]
pub struct Moment {
    pub contents: Contents,
    /// The volumes whose objects this one reads, itself first.
    pub needs: Vec<String>,
    pub change: String,
    /// How many points were known durable by then.
    pub durable: usize,
    /// What was known of snapshots by then.
    pub snapshots: BTreeMap<String, Known>,
}

/// What was durable when the bucket was copied.
#[derive(Clone, Debug)]
pub struct Past {
    durable: Vec<u64>,
    snapshots: BTreeMap<String, Known>,
}

/// Everything that is known of one volume.
#[derive(Debug)]
pub struct Promises {
    pub tenures: BTreeMap<Key, Tenure>,
    durable: Vec<u64>,
    points: u64,
    pub moments: Vec<Moment>,
    pub snapshots: Snapshots,
    /// Every manifest that was ever put, by its digest.
    pub manifests: BTreeMap<Digest, Bytes>,
    /// An older copy of the bucket was put back.
    pub rolled_back: bool,
    /// It was put back under running writers, just now: nothing counts as published until it is done as it should be.
    pub torn: bool,
    journal: Arc<Mutex<Journal>>,
}

impl Promises {
    /// A fresh volume, by generation 0: `image` is what it begins with.
    pub fn new(image: Vec<u8>, journal: Arc<Mutex<Journal>>) -> Self {
        let made = Point { id: 0, image: Arc::new(image), end: None, is_of_manifest: true };
        let first = Tenure { host: usize::MAX, line: vec![made], acknowledged: 0, flushed: 0 };
        Self {
            tenures: BTreeMap::from([((0, 0), first)]),
            durable: vec![0],
            points: 0,
            moments: Vec::new(),
            snapshots: Snapshots::default(),
            manifests: BTreeMap::new(),
            rolled_back: false,
            torn: false,
            journal,
        }
    }

    pub fn note(&self, text: impl AsRef<str>) {
        self.journal.lock().unwrap().note(text);
    }

    pub fn count(&self, event: &'static str) {
        self.journal.lock().unwrap().count(event);
    }

    fn tenure(&mut self, key: Key) -> &mut Tenure {
        self.tenures.get_mut(&key).expect("it serves")
    }

    /// A change is sent off: the index of its point.
    pub fn send(&mut self, key: Key, offset: u64, length: u64, data: Option<&[u8]>) -> usize {
        let mut image = self.image(key).to_vec();
        let range = offset as usize..(offset + length) as usize;
        match data {
            Some(data) => image[range].copy_from_slice(data),
            None => image[range].fill(0),
        }
        self.send_image(key, image, false)
    }

    /// A change of the volume's size, as long as an image is, is sent off: the index of its point.
    pub fn send_size(&mut self, key: Key, size_bytes: u64) -> usize {
        let mut image = self.image(key).to_vec();
        image.resize(size_bytes as usize, 0);
        self.send_image(key, image, true)
    }

    /// A change that makes the content all of this is sent off: the index of its point.
    pub fn send_back(&mut self, key: Key, image: &[u8]) -> usize {
        self.send_image(key, image.to_vec(), true)
    }

    /// The last change that was sent off came to nothing, and was no write.
    pub fn take_back(&mut self, key: Key) {
        self.tenure(key).line.pop();
    }

    fn send_image(&mut self, key: Key, image: Vec<u8>, is_of_manifest: bool) -> usize {
        self.points += 1;
        let id = self.points;
        let line = &mut self.tenure(key).line;
        line.push(Point { id, image: Arc::new(image), end: None, is_of_manifest });
        line.len() - 1
    }

    /// Everything up to `at`, which ends at `end` in the log, was answered.
    pub fn acknowledge(&mut self, key: Key, at: usize, end: Lsn) {
        let tenure = self.tenure(key);
        tenure.acknowledged = at;
        tenure.line[at].end = Some(end);
    }

    /// Everything up to `at` is on the local disk.
    pub fn flush(&mut self, key: Key, at: usize) {
        let tenure = self.tenure(key);
        tenure.flushed = tenure.flushed.max(at);
    }

    /// Everything up to `at` is in the bucket for good: somebody was told so.
    pub fn publish(&mut self, key: Key, at: usize) {
        if self.torn {
            return;
        }
        let ids: Vec<u64> = self.tenures[&key].line[..=at].iter().map(|point| point.id).collect();
        let common = ids.len().min(self.durable.len());
        assert_eq!(
            ids[..common],
            self.durable[..common],
            "{key:?} published what does not continue the history that others were told is durable"
        );
        if ids.len() > common {
            self.durable = ids;
        }
    }

    /// Everything that ends at or below `lsn` was published and its claims checked.
    pub fn publish_to(&mut self, key: Key, lsn: Lsn) {
        let known = self.tenures[&key].line.iter().rposition(|point| point.end.is_some_and(|end| end <= lsn));
        if let Some(at) = known {
            self.publish(key, at);
        }
    }

    /// What reads see now.
    pub fn image(&self, key: Key) -> Arc<Vec<u8>> {
        let line = &self.tenures[&key].line;
        Arc::clone(&line[line.len() - 1].image)
    }

    /// Index of the last point of a tenure's line.
    pub fn last(&self, key: Key) -> usize {
        self.tenures[&key].line.len() - 1
    }

    /// How many points are durable.
    pub fn durable(&self) -> usize {
        self.durable.len()
    }

    /// The point of the line of `key` whose content this is: one that contains the first `durable` durable points, and
    /// at least `floor`.
    pub fn find(&self, key: Key, found: &[u8], durable: usize, floor: usize) -> Result<usize, String> {
        let line = &self.tenures[&key].line;
        let continues = line.len() >= durable
            && line[..durable].iter().map(|point| point.id).eq(self.durable[..durable].iter().copied());
        if !continues {
            return Err(format!("the line of {key:?} does not contain what was durable: {durable} points"));
        }
        let floor = floor.max(durable - 1);
        let at = line.iter().rposition(|point| *point.image == found);
        match at {
            Some(at) if at >= floor => Ok(at),
            Some(at) => Err(format!("{key:?}: point {at}, but {floor} were promised")),
            None => Err(self.difference(key, found, floor)),
        }
    }

    /// Whether this is what objects alone tell of the line of `key`: its last content, or that before changes which are in
    /// manifests alone.
    pub fn is_newest_of_objects(&self, key: Key, found: &[u8]) -> bool {
        let line = &self.tenures[&key].line;
        let at = line.iter().rposition(|point| *point.image == found);
        at.is_some_and(|at| line[at + 1..].iter().all(|point| point.is_of_manifest))
    }

    /// Whether the line of `key` up to `at` begins with that of `other` up to `count`.
    pub fn contains(&self, key: Key, at: usize, other: Key, count: usize) -> bool {
        let ids = |key: Key, at: usize| self.tenures[&key].line[..=at].iter().map(|point| point.id);
        count <= at && ids(key, count).eq(ids(other, count))
    }

    fn difference(&self, key: Key, found: &[u8], floor: usize) -> String {
        let line = &self.tenures[&key].line;
        let wrong = |point: &Point| {
            let pairs = point.image.iter().zip(found);
            pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect::<Vec<_>>()
        };
        let nearest = line.iter().enumerate().map(|(at, point)| (wrong(point), at)).min_by_key(|n| n.0.len());
        let (wrong, at) = nearest.expect("a line has a point");
        format!(
            "{key:?}: no prefix of {} points with at least {floor}: nearest is {at}, but for {} bytes from {:#x} on",
            line.len(),
            wrong.len(),
            wrong.first().unwrap_or(&0),
        )
    }

    /// A tenure begins to serve with the content of point `at` of another; whatever it replayed is on its disk.
    pub fn begin(&mut self, key: Key, host: usize, from: Key, at: usize) {
        let mut line = self.tenures[&from].line[..=at].to_vec();
        line.iter_mut().for_each(|point| point.end = None);
        let before = self.tenures.insert(key, Tenure { host, line, acknowledged: at, flushed: at });
        assert!(before.is_none(), "two tenures with one name: {key:?}");
    }

    /// The bucket changed, and the volume is to be rebuilt from it, out of the objects of those that it `needs`.
    pub fn changed(&mut self, change: &str, contents: &Contents, needs: Vec<String>) {
        if self.torn {
            return;
        }
        let (change, contents) = (change.to_owned(), contents.clone());
        let snapshots = self.snapshots.known.clone();
        self.moments.push(Moment { contents, needs, change, durable: self.durable.len(), snapshots });
    }

    /// Something of the volume was put, under a name below its own.
    pub fn put(&mut self, name: &str, body: &[Bytes]) {
        if name.starts_with(names::MANIFESTS) {
            let bytes = body.concat();
            self.manifests.insert(digest(&bytes), bytes.into());
        }
    }

    /// What to go back to, should the bucket be copied now and put back later.
    pub fn past(&self) -> Past {
        Past { durable: self.durable.clone(), snapshots: self.snapshots.known.clone() }
    }

    /// The bucket of then was put back: what was promised since is gone.
    pub fn put_back(&mut self, past: &Past) {
        self.durable = past.durable.clone();
        self.snapshots.known = past.snapshots.clone();
    }
}
