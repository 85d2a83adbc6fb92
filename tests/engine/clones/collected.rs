//! What the collectors of a family of volumes delete, against a count of everything that any of them may still read.

use super::*;
use crate::rig::for_seeds;
use crate::{
    collect,
    watched::{References, Watched, objects},
};

/// A volume of the family, open.
struct Member {
    name: String,
    /// Whose clone it is.
    origin: Option<String>,
    pair: Pair,
    snapshots: BTreeMap<String, Vec<u8>>,
}

impl Member {
    fn any_snapshot(&self, prng: &mut Prng) -> Option<String> {
        let at = prng.below(self.snapshots.len().max(1) as u64) as usize;
        self.snapshots.keys().nth(at).cloned()
    }

    async fn delete(&mut self, snapshot: String) {
        match self.pair.volume.core().change(Change::Delete(snapshot.clone())).await {
            Ok(_) => drop(self.snapshots.remove(&snapshot)),
            Err(VolumeError::SnapshotInUse { .. }) => {}
            Err(error) => panic!("{}: {error}", self.name),
        }
    }
}

/// Writes, trims, snapshots and their deletions, clones, rollbacks, and time for all that is compacted and collected.
async fn history(seed: u64) {
    let mut prng = Prng::new(seed);
    let mut street = Street::new(seed, collect::settings(&mut prng));
    let references = Arc::new(References::new(&street.memory, secret));
    let watched = Arc::new(Watched::new(Arc::clone(&street.store), Arc::clone(&references)));
    street.store = Arc::<Watched>::clone(&watched);
    street.init("v0", SIZE).await;
    let pair = Pair { volume: street.open("v0").await, wanted: vec![0; SIZE as usize] };
    let mut family = vec![Member { name: "v0".to_owned(), origin: None, pair, snapshots: BTreeMap::new() }];
    let (mut made, mut has_crashed) = (1, false);
    for step in 0..100 {
        let at = prng.below(family.len() as u64) as usize;
        let has_clones = family.iter().any(|other| other.origin.as_ref() == Some(&family[at].name));
        let room = family.len() < 4;
        let member = &mut family[at];
        let (offset, length) = (prng.below(SIZE - 20_000), 1 + prng.below(20_000) as usize);
        match prng.below(20) {
            0..8 => member.pair.write(&mut prng, offset, length).await,
            8 => member.pair.trim(offset, length).await,
            9 => member.pair.volume.sync().await.unwrap(),
            10 | 11 => {
                let name = format!("s{step}");
                member.pair.volume.core().change(Change::Take(name.clone())).await.unwrap();
                member.snapshots.insert(name, member.pair.wanted.clone());
            }
            12 => {
                if let Some(name) = member.any_snapshot(&mut prng) {
                    member.delete(name).await;
                }
            }
            13 => {
                if let Some(name) = member.any_snapshot(&mut prng) {
                    let keep = prng.below(2) == 0;
                    let done = member.pair.volume.core().roll_back(&name, keep).await.unwrap();
                    let back = member.snapshots[&name].clone();
                    let before = std::mem::replace(&mut member.pair.wanted, back);
                    member.snapshots.extend(done.kept.map(|kept| (kept, before)));
                }
            }
            14 | 15 if room => {
                let chosen = if prng.below(2) == 0 { member.any_snapshot(&mut prng) } else { None };
                let wanted = match &chosen {
                    Some(snapshot) => member.snapshots[snapshot].clone(),
                    None => member.pair.wanted.clone(),
                };
                let (origin, name) = (member.name.clone(), format!("v{made}"));
                made += 1;
                street.clone_open(&origin, &member.pair.volume, chosen.as_deref(), &name).await.unwrap();
                let pair = Pair { volume: street.open(&name).await, wanted };
                family.push(Member { name, origin: Some(origin), pair, snapshots: BTreeMap::new() });
            }
            16 if at > 0 && !has_clones => {
                let gone = family.remove(at);
                gone.pair.volume.close().await.unwrap();
                street.remove(&gone.name);
            }
            17 if prng.below(12) == 0 => {
                // Killed: what it was uploading may stay, and nobody names it.
                has_crashed = true;
                member.pair.volume.flush().await.unwrap();
                let Member { name, origin, pair: Pair { volume, wanted }, snapshots } = family.remove(at);
                drop(volume);
                let pair = Pair { volume: street.open(&name).await, wanted };
                family.insert(at, Member { name, origin, pair, snapshots });
            }
            _ => tokio::time::sleep(Duration::from_secs([1, 10, 60, 1000][prng.below(4) as usize])).await,
        }
    }
    for member in &mut family {
        for name in member.snapshots.keys().cloned().collect::<Vec<_>>() {
            if prng.below(2) == 0 {
                member.delete(name).await;
            }
        }
        member.pair.volume.sync().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    for member in &family {
        member.pair.assert_as_wanted(&member.name).await;
    }
    let (there, needed) = (objects(&street.memory), references.all().await);
    let missing: Vec<_> = needed.iter().filter(|key| !there.contains_key(*key)).collect();
    assert!(missing.is_empty(), "needed and gone: {missing:?}");
    let left: Vec<_> = there.keys().filter(|key| !needed.contains(*key)).collect();
    assert!(has_crashed || left.is_empty(), "nobody needs these of {}: {left:?}", there.len());
    assert!(watched.deleted() > 0, "a history without garbage");
    for member in family {
        member.pair.volume.close().await.unwrap();
        // What was removed here has left its pin, as who removes a folder by hand does.
        let report = street.check(&member.name).await;
        let faults: Vec<_> =
            faults(&report).filter(|fault| !matches!(fault, Finding::PinStale { .. })).collect();
        assert!(faults.is_empty(), "{}: {faults:#?}", member.name);
    }
}

#[test]
fn no_volume_of_a_family_loses_what_another_needs_and_what_none_needs_goes() {
    for_seeds(30, history);
}
