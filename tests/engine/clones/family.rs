//! Random histories of volumes and their clones, each against an array of bytes.

use std::collections::BTreeMap;

use s3bd::{
    nbd::Device,
    volume::{Volume, snapshots::Change},
};
use wal::disk::sim::Prng;

use super::{Pair, SIZE, Street};
use crate::rig::{for_seeds, tight_settings};

/// One volume of a family, closed or open.
struct Member {
    name: String,
    volume: Option<Volume>,
    wanted: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
}

/// A random history of volumes that are cloned, written to, closed, killed and opened, each against an array of bytes.
async fn family(seed: u64) {
    let mut prng = Prng::new(seed);
    let mut street = Street::new(seed, tight_settings(&mut prng));
    street.init("v0", SIZE).await;
    let first = Member {
        name: "v0".to_owned(),
        volume: None,
        wanted: vec![0; SIZE as usize],
        snapshots: BTreeMap::new(),
    };
    let mut family = vec![first];
    for step in 0..60 {
        let at = prng.below(family.len() as u64) as usize;
        let name = family[at].name.clone();
        if family[at].volume.is_none() {
            family[at].volume = Some(street.open(&name).await);
        }
        let member = &mut family[at];
        let volume = member.volume.take().unwrap();
        let mut pair = Pair { volume, wanted: std::mem::take(&mut member.wanted) };
        let (offset, length) = (prng.below(SIZE - 9000), 1 + prng.below(9000) as usize);
        let mut stays_open = true;
        match prng.below(12) {
            0..=4 => pair.write(&mut prng, offset, length).await,
            5 => pair.trim(offset, length).await,
            6 => pair.volume.sync().await.unwrap(),
            7 => {
                let name = format!("s{step}");
                pair.volume.core().change(Change::Take(name.clone())).await.unwrap();
                family[at].snapshots.insert(name, pair.wanted.clone());
            }
            8 if family.len() < 5 => {
                let names: Vec<String> = family[at].snapshots.keys().cloned().collect();
                let chosen = (!names.is_empty() && prng.below(2) == 0)
                    .then(|| names[prng.below(names.len() as u64) as usize].clone());
                let wanted = match &chosen {
                    Some(snapshot) => family[at].snapshots[snapshot].clone(),
                    None => pair.wanted.clone(),
                };
                let clone = format!("v{}", family.len());
                street.clone_open(&name, &pair.volume, chosen.as_deref(), &clone).await.unwrap();
                family.push(Member { name: clone, volume: None, wanted, snapshots: BTreeMap::new() });
            }
            // What it holds of others stays theirs as long as a snapshot names it.
            9 if family[at].snapshots.is_empty() && pair.volume.core().state().snapshots.is_empty() => {
                pair.volume.core().flatten(|_| ()).await.unwrap();
            }
            10 => {
                pair.volume.close().await.unwrap();
                stays_open = false;
            }
            _ => {
                // Killed: what was acknowledged is in the log.
                pair.volume.flush().await.unwrap();
                stays_open = false;
            }
        }
        if stays_open {
            pair.assert_as_wanted(&name).await;
        }
        let Pair { volume, wanted } = pair;
        family[at].wanted = wanted;
        family[at].volume = stays_open.then_some(volume);
    }
    for member in &mut family {
        let volume = match member.volume.take() {
            Some(volume) => volume,
            None => street.open(&member.name).await,
        };
        let pair = Pair { volume, wanted: member.wanted.clone() };
        pair.assert_as_wanted(&member.name).await;
        pair.volume.close().await.unwrap();
    }
    street.hosts.clear();
    for member in &family {
        street.assert_sound(&member.name).await;
        let pair = Pair { volume: street.open(&member.name).await, wanted: member.wanted.clone() };
        pair.assert_as_wanted(&member.name).await;
    }
}

#[test]
fn every_volume_of_a_family_keeps_its_content_whatever_the_others_do() {
    for_seeds(40, family);
}
