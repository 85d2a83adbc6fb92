//! A bucket that is whole, and older than what a host has seen of it.

use std::sync::Arc;

use s3bd::{
    format::names,
    fsck::{Finding, Remedy, Severity, repair::prepare, seen::compare},
    store::memory::Memory,
};

use crate::{
    anatomy::Anatomy,
    hits::ALL,
    host::{Disks, env},
    volumes::{check_at, rich_and_its_host, unlock},
};

#[tokio::test(start_paused = true)]
async fn a_newest_manifest_that_is_gone_is_found_by_the_host_that_has_seen_it_and_by_no_other() {
    let (store, disks) = rich_and_its_host().await;
    let anatomy = Anatomy::of(&store).await;
    let outside = |store: &Memory, disks: &Disks| env(Arc::new(store.clone()), disks, 60, "here");
    assert_eq!(compare(&outside(&store, &disks), &unlock(&store).await).await.unwrap(), None);
    let mut contents = anatomy.contents.clone();
    assert!(contents.remove(&anatomy.names(names::MANIFESTS).pop().unwrap()));
    let older = Memory::new();
    older.restore(contents.clone());
    let bucket = unlock(&older).await;
    // By itself it is sound: nothing in it says that there was more.
    let mut report = check_at(Arc::new(older.clone()), ALL).await;
    assert!(report.is_sound(), "{report:#?}");
    assert_eq!(compare(&outside(&older, &Disks::new()), &bucket).await.unwrap(), None);
    let here = outside(&older, &disks);
    let finding = compare(&here, &bucket).await.unwrap().expect("a finding");
    let Finding::BehindSeen { found, seen, .. } = finding else { panic!("{finding}") };
    assert!(found < seen && seen == anatomy.newest.epoch, "{finding}");
    assert_eq!((finding.severity(), finding.remedy()), (Severity::Error, Remedy::AcceptRollback));
    report.add(finding);
    let plan = prepare(&here, &bucket, &report).await.unwrap();
    assert!(plan.steps.is_empty() && plan.left.len() == 1, "{plan:#?}");
    assert!(older.snapshot() == contents, "it was written to");
}
