//! The volumes of a history: whose clones they are, and who reads whose objects.
//!
//! # Overview
//! Which volumes there are, the bucket says, at any moment: what was under way when it changed, or was put back, is in no
//! book. The book has what the bucket does not tell: what each volume has to hold, and of what it was made.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use s3bd::{
    format::{header::Header, ids::VolumeId, manifest::CloneRef, names},
    store::memory::Contents,
};
use tokio::time::Instant;

use crate::{
    journal::Journal,
    promises::{Past, Promises},
};

/// Longer than any change is under way whose caller is gone.
pub const LATE: Duration = Duration::from_secs(20);
/// The volume that a history begins with.
pub const FIRST: &str = "first";
/// Volumes there are at once, at most, begun ones included.
const VOLUMES_MAX: usize = 3;
/// Names that a history gives to clones.
const NAMES_MAX: usize = 4;

/// Of what a clone is made.
#[derive(Clone, Debug)]
pub struct Origin {
    pub volume: String,
    /// The snapshot that was pinned for it, once that is known.
    pub snapshot: Option<String>,
}

/// A volume, or what may become one.
#[derive(Clone, Debug)]
pub struct Member {
    pub promises: Arc<Mutex<Promises>>,
    pub origin: Option<Origin>,
    /// A command makes it.
    is_begun: bool,
    /// When the last command about it ended.
    ended: Instant,
}

impl Member {
    pub fn promises(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unwrap()
    }
}

#[derive(Debug)]
pub struct Family {
    pub members: BTreeMap<String, Member>,
    /// Names under which there was a volume at some time.
    used: BTreeSet<String>,
    journal: Arc<Mutex<Journal>>,
    named: usize,
}

/// What is under a volume's name.
pub fn keys_of<'a>(contents: &'a Contents, volume: &'a str) -> impl Iterator<Item = &'a str> {
    let keys = contents.iter().map(|(key, _)| key);
    keys.filter(move |key| key.split_once('/').is_some_and(|(owner, _)| owner == volume))
}

/// Whether there is a volume of this name.
pub fn is_volume(contents: &Contents, volume: &str) -> bool {
    contents.get(&format!("{volume}/{}", names::HEADER)).is_some()
}

/// Whether a volume says that it depends on nothing.
pub fn is_independent(contents: &Contents, volume: &str) -> bool {
    contents.get(&format!("{volume}/{}", names::INDEPENDENT)).is_some()
}

fn has_id(contents: &Contents, volume: &str, header: &str, id: VolumeId) -> bool {
    let found = contents.get(&format!("{volume}/{header}"));
    found.is_some_and(|bytes| Header::decode(bytes).is_ok_and(|header| header.volume == id))
}

/// Whether the clone that is meant is a volume, and depends on its origin.
pub fn depends(contents: &Contents, clone: &CloneRef) -> bool {
    has_id(contents, &clone.name, names::HEADER, clone.volume) && !is_independent(contents, &clone.name)
}

/// Whether it may come to that, or is not quite removed.
pub fn may_depend(contents: &Contents, clone: &CloneRef) -> bool {
    let unfinished = has_id(contents, &clone.name, names::HEADER_UNFINISHED, clone.volume);
    depends(contents, clone) || (unfinished && !is_independent(contents, &clone.name))
}

impl Family {
    pub fn new(first: Promises, journal: Arc<Mutex<Journal>>) -> Self {
        let first = Member {
            promises: Arc::new(Mutex::new(first)),
            origin: None,
            is_begun: false,
            ended: Instant::now(),
        };
        Self {
            members: BTreeMap::from([(FIRST.to_owned(), first)]),
            used: BTreeSet::new(),
            journal,
            named: 0,
        }
    }

    /// The volumes whose objects this one reads, itself first.
    pub fn needs(&self, contents: &Contents, volume: &str) -> Vec<String> {
        let mut needs = vec![volume.to_owned()];
        let mut at = volume;
        while let Some(origin) = self.members.get(at).and_then(|member| member.origin.as_ref())
            && !is_independent(contents, at)
        {
            at = &origin.volume;
            needs.push(at.to_owned());
        }
        needs
    }

    /// The other volumes that read this one's objects.
    pub fn readers(&self, contents: &Contents, volume: &str) -> Vec<String> {
        let others = self.members.keys().filter(|other| *other != volume && is_volume(contents, other));
        others
            .filter(|other| self.needs(contents, other).iter().any(|need| need == volume))
            .cloned()
            .collect()
    }

    /// The clones that depend on a volume, or on one snapshot of it.
    pub fn clones(&self, contents: &Contents, volume: &str, snapshot: Option<&str>) -> Vec<String> {
        let is_of = |member: &Member| {
            let origin = member.origin.as_ref().filter(|origin| origin.volume == volume);
            origin.is_some_and(|origin| snapshot.is_none_or(|name| origin.snapshot.as_deref() == Some(name)))
        };
        let depends = |name: &str| is_volume(contents, name) && !is_independent(contents, name);
        self.members
            .iter()
            .filter(|(name, member)| is_of(member) && depends(name))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// A command is going to make a clone of `origin` that has to hold `image`: under a name of its own, or one under which
    /// it did not come to an end before. None: there are enough.
    pub fn begin(&mut self, contents: &Contents, origin: &str, image: &[u8], again: bool) -> Option<String> {
        let is_left = |name: &str| keys_of(contents, name).next().is_some();
        let alive = self.members.iter().filter(|(name, member)| member.is_begun || is_left(name)).count();
        // Nothing lands there any more; and what was a volume once is not made anew: a copy of the bucket may have it.
        let is_free = |(name, member): &(&String, &Member)| {
            !member.is_begun && member.ended.elapsed() > LATE && !self.used.contains(*name)
        };
        let name = match self.members.iter().find(is_free) {
            Some((name, _)) if again => name.clone(),
            _ if alive >= VOLUMES_MAX || self.named == NAMES_MAX => return None,
            _ => {
                self.named += 1;
                format!("clone-{}", self.named)
            }
        };
        let promises = Promises::new(image.to_vec(), Arc::clone(&self.journal));
        let member = Member {
            promises: Arc::new(Mutex::new(promises)),
            origin: Some(Origin { volume: origin.to_owned(), snapshot: None }),
            is_begun: true,
            ended: Instant::now(),
        };
        self.members.insert(name.clone(), member);
        Some(name)
    }

    /// Something of a volume was put, under a name below its own.
    pub fn put(&mut self, volume: &str, name: &str, body: &[Bytes]) {
        if name == names::HEADER {
            self.used.insert(volume.to_owned());
        }
        self.members[volume].promises().put(name, body);
    }

    /// A snapshot was pinned for a clone that is being made.
    pub fn pinned(&mut self, clone: &str, snapshot: &str) {
        let member = self.members.get_mut(clone).expect("it is being made");
        member.origin.as_mut().expect("it is a clone").snapshot = Some(snapshot.to_owned());
    }

    /// The command that was about a volume is over, whatever its end.
    pub fn ended(&mut self, volume: &str) {
        let member = self.members.get_mut(volume).expect("it was begun");
        (member.is_begun, member.ended) = (false, Instant::now());
    }

    /// A copy of the bucket, to be put back later.
    pub fn copy(&self, contents: Contents) -> Copy {
        let past = |member: &Member| (member.clone(), member.promises().past());
        let members = self.members.iter().map(|(name, member)| (name.clone(), past(member))).collect();
        Copy { contents, members }
    }

    /// The copy is put back: what was promised since is gone.
    pub fn put_back(&mut self, copy: &Copy) {
        for (name, (member, past)) in &copy.members {
            member.promises().put_back(past);
            self.members.insert(name.clone(), member.clone());
        }
        self.members.values().for_each(|member| member.promises().rolled_back = true);
    }

    /// From now on nothing counts as published, or it does again.
    pub fn set_torn(&self, torn: bool) {
        self.members.values().for_each(|member| member.promises().torn = torn);
    }
}

/// An older copy of the bucket, and what was known then.
#[derive(Clone, Debug)]
pub struct Copy {
    pub contents: Contents,
    members: BTreeMap<String, (Member, Past)>,
}
