//! Claims that are damaged or missing: a fault while something may need them, and a note afterwards.

use std::sync::Arc;

use s3bd::{
    format::names,
    fsck::{Finding, Report, Severity},
    nbd::Device,
    store::memory::Memory,
};
use wal::disk::sim::Prng;

use crate::{
    host::{Disks, make, reopen},
    volumes::{LEVELS, SIZE, check_at, faults, noise},
};

/// A volume that was opened three times, the manifests of the first tenure let go; and the names of its claims.
async fn opened_thrice() -> (Memory, Vec<String>) {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (disks, mut prng) = (Disks::new(), Prng::new(3));
    for seed in 1..=3 {
        let (volume, _) = reopen(&store, &disks, seed).await.unwrap();
        for _ in 0..if seed == 2 { 30 } else { 1 } {
            volume.write(0, noise(&mut prng, 5000), false).await.unwrap();
            volume.sync().await.unwrap();
        }
        volume.close().await.unwrap();
    }
    let contents = store.snapshot();
    let below =
        |prefix| contents.iter().map(|(key, _)| key.to_owned()).filter(move |key| key.starts_with(prefix));
    let oldest = below(names::MANIFESTS).next().unwrap();
    assert_eq!(names::parse_manifest(&oldest).unwrap().0.0, 2);
    let claims = below(names::CLAIMS).collect();
    (store, claims)
}

/// Without the claim, or with another bit in it.
async fn checked(store: &Memory, claim: &str, missing: bool) -> Vec<Report> {
    let mut contents = store.snapshot();
    match missing {
        true => assert!(contents.remove(claim)),
        false => {
            let mut bytes = contents.get(claim).unwrap().to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            contents.set(claim, bytes.into());
        }
    }
    let store = Memory::new();
    store.restore(contents);
    let mut reports = Vec::new();
    for level in LEVELS {
        reports.push(check_at(Arc::new(store.clone()), level).await);
    }
    reports
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_a_fault_while_something_may_need_it_and_a_note_afterwards() {
    let (store, claims) = opened_thrice().await;
    for (number, claim) in claims.iter().enumerate() {
        for missing in [false, true] {
            for report in checked(&store, claim, missing).await {
                let is_claim = |finding: &&Finding| {
                    matches!(finding, Finding::ClaimDamaged { .. } | Finding::ClaimMissing { .. })
                };
                let found = report.findings.iter().find(is_claim);
                let found = found.unwrap_or_else(|| panic!("{claim}, {missing}: {report:#?}"));
                let expected = if number == 0 { Severity::Note } else { Severity::Error };
                assert_eq!(found.severity(), expected, "{claim}, {missing}: {found}");
                assert_eq!(report.is_sound(), number == 0, "{claim}, {missing}: {report:#?}");
                assert_eq!(faults(&report).len(), usize::from(number > 0), "{claim}, {missing}: {report:#?}");
            }
        }
    }
    assert_eq!(claims.len(), 3);
}
