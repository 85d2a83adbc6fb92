//! A volume that grows and shrinks: what is beyond the end is gone, for good and from the bucket, too.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    format::slot::Argon2,
    fsck::{self, Level, Options, Sample, Severity},
    nbd::{Device, DeviceError},
    seal::slot::Secret,
    store::{faulty::Faulty, memory::Memory},
    volume::{
        Volume,
        bucket::Bucket,
        env::Env,
        error::VolumeError,
        open::{Agreed, inspect, open_read_only},
        rescue::{Destination, Rescued, rescue},
        resize::{Mapped, SIZE_BYTES_MAX},
        tally::Tally,
    },
};

use crate::{
    host::{Disks, env, reopen, small_settings, unlock},
    rig::{Rig, WHATEVER, retrying},
};

const SIZE: u64 = 256 << 10;
const BLOCK: u32 = 4096;

async fn rig() -> Rig {
    let mut settings = small_settings();
    settings.checkpoint_objects = 2;
    Rig::new(1, SIZE, BLOCK, settings).await
}

fn host(rig: &Rig, number: usize) -> Env {
    env(Arc::clone(&rig.store), &rig.hosts[number], 99, &format!("host {number}"))
}

async fn bucket(rig: &Rig) -> Bucket {
    unlock(&host(rig, 0)).await
}

async fn write(volume: &Volume, offset: u64, length: usize, fill: u8) {
    volume.write(offset, Bytes::from(vec![fill; length]), false).await.expect("it is within the volume");
}

async fn resize(volume: &Volume, size_bytes: u64) {
    let before = volume.info().size_bytes;
    volume.core().resize(before, size_bytes).await.expect("a size that can be");
    assert_eq!(volume.info().size_bytes, size_bytes);
}

async fn read(volume: &Volume, offset: u64, length: u64) -> Vec<u8> {
    volume.read(offset, length as u32).await.expect("it can be read").concat()
}

async fn assert_zeros(volume: &Volume, offset: u64, length: u64) {
    assert!(read(volume, offset, length).await.iter().all(|byte| *byte == 0), "{length} bytes at {offset}");
}

async fn assert_sound(rig: &Rig) {
    let bucket = bucket(rig).await;
    let options = Options { level: Level::ReadData(Sample::ALL), concurrency: 4 };
    let report = fsck::check(&bucket, &options, &()).await.expect("a store that answers");
    let faults: Vec<_> = report.findings.iter().filter(|found| found.severity() > Severity::Note).collect();
    assert!(faults.is_empty(), "fsck: {faults:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_volume_grows_is_written_beyond_the_old_end_shrinks_and_grows_with_zeros() {
    let mut rig = rig().await;
    for synced in [false, true] {
        let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
        write(&volume, SIZE - 5000, 5000, 1).await;
        resize(&volume, 2 * SIZE).await;
        write(&volume, SIZE - 100, 9000, 2).await;
        write(&volume, 2 * SIZE - 7, 7, 3).await;
        if synced {
            volume.sync().await.unwrap();
        }
        resize(&volume, SIZE / 2).await;
        if synced {
            volume.sync().await.unwrap();
        }
        resize(&volume, 4 * SIZE).await;
        assert_zeros(&volume, SIZE / 2, 4 * SIZE - SIZE / 2).await;
        write(&volume, 4 * SIZE - 1, 1, 4).await;
        volume.flush().await.unwrap();
        // The log alone has it, where nothing was synced.
        drop(volume);
        rig.hosts[0] = rig.hosts[0].crash(7);
        let (volume, report) = rig.open(0, Agreed::default()).await.unwrap();
        assert_eq!(report.replayed.size_bytes, Some(4 * SIZE));
        assert_eq!(volume.info().size_bytes, 4 * SIZE);
        assert_zeros(&volume, SIZE / 2, 4 * SIZE - SIZE / 2 - 1).await;
        assert_eq!(read(&volume, 4 * SIZE - 1, 1).await, [4]);
        volume.close().await.unwrap();
        assert_sound(&rig).await;
        let (volume, report) = rig.open(1, Agreed::default()).await.unwrap();
        assert_eq!((report.newest.size_bytes, volume.info().size_bytes), (4 * SIZE, 4 * SIZE));
        assert_zeros(&volume, SIZE / 2, 4 * SIZE - SIZE / 2 - 1).await;
        resize(&volume, SIZE).await;
        volume.close().await.unwrap();
        assert_sound(&rig).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_smaller_size_cuts_off_leaves_the_maps_and_is_counted_before() {
    let mut rig = rig().await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    let core = Arc::clone(volume.core());
    let mapped = async |start| core.mapped_from(start).await.unwrap();
    let all = |bytes| Mapped { bytes, exact: true };
    resize(&volume, 1 << 50).await;
    assert_eq!(mapped(0).await, all(0));
    write(&volume, 0, 40_960, 1).await;
    write(&volume, 1 << 40, 8192, 2).await;
    assert_eq!((mapped(0).await, mapped(8192).await), (all(49_152), all(40_960)), "in the log");
    volume.sync().await.unwrap();
    assert_eq!((mapped(0).await, mapped(8192).await), (all(49_152), all(40_960)), "in the delta");
    volume.close().await.unwrap();
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    let core = Arc::clone(volume.core());
    let mapped = async |start| core.mapped_from(start).await.unwrap();
    assert_eq!((mapped(0).await, mapped(8192).await), (all(49_152), all(40_960)), "in pages");
    write(&volume, 4096, 8192, 3).await;
    write(&volume, (1 << 40) + 4096, 8192, 3).await;
    volume.trim(1 << 40, 4096, false).await.unwrap();
    assert_eq!((mapped(0).await, mapped(1 << 40).await), (all(49_152), all(8192)), "in all of them");
    assert_eq!(mapped(1 << 60).await, all(0));
    resize(&volume, 8192).await;
    volume.close().await.unwrap();
    assert_sound(&rig).await;
    let bucket = bucket(&rig).await;
    let newest = bucket.newest_manifest().await.unwrap().manifest;
    assert_eq!((newest.size_bytes, newest.totals.mapped_blocks), (8192, 2));
}

#[tokio::test(start_paused = true)]
async fn a_size_that_cannot_be_changes_nothing_and_says_the_rule() {
    let mut rig = rig().await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    for (size_bytes, rule) in [
        (0, "multiple of 4096"),
        (SIZE + 512, "multiple of 4096"),
        (SIZE_BYTES_MAX + 1, "smaller than 8 EiB"),
        (!4095, "smaller than 8 EiB"),
    ] {
        let error = volume.core().resize(SIZE, size_bytes).await.unwrap_err();
        assert!(error.to_string().contains(rule), "{error}");
    }
    let error = volume.core().resize(2 * SIZE, 3 * SIZE).await.unwrap_err();
    assert!(
        matches!(error, VolumeError::SizeChanged { expected, found } if (expected, found) == (2 * SIZE, SIZE))
    );
    resize(&volume, SIZE).await;
    assert_eq!(volume.core().unpublished_bytes(), 0);
    assert!(volume.core().state().active.is_empty(), "the same size is no change");
    resize(&volume, SIZE_BYTES_MAX & !4095).await;
    write(&volume, (SIZE_BYTES_MAX & !4095) - 1, 1, 1).await;
    volume.close().await.unwrap();
    let reader = open_read_only(host(&rig, 1), bucket(&rig).await, rig.settings.clone()).await.unwrap();
    assert_eq!(reader.info().size_bytes, SIZE_BYTES_MAX & !4095);
    let refused = reader.core().resize(SIZE_BYTES_MAX & !4095, SIZE).await;
    assert!(matches!(refused, Err(VolumeError::ReadOnly)), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_across_a_new_end_are_refused_as_the_protocol_says() {
    let mut rig = rig().await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    let volume = Arc::new(volume);
    let mut writers = Vec::new();
    for writer in 0..4_u64 {
        let volume = Arc::clone(&volume);
        writers.push(tokio::spawn(async move {
            let mut refused = 0;
            for step in 0..200_u64 {
                let offset = (writer * 7919 + step * 4099) % (SIZE - 3000);
                match volume.write(offset, Bytes::from(vec![5; 3000]), false).await {
                    Ok(()) => {}
                    Err(DeviceError::NoSpace) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
                match volume.zero(offset, 2000, false, false).await {
                    Ok(()) | Err(DeviceError::NoSpace) => {}
                    Err(error) => panic!("{error}"),
                }
                match volume.trim(offset, 2000, false).await {
                    Ok(()) | Err(DeviceError::Invalid) => {}
                    Err(error) => panic!("{error}"),
                }
                assert_eq!(read(&volume, offset, 3000).await.len(), 3000, "sent before it shrank");
                volume.extents(offset, 3000, 100).await.unwrap();
                volume.cache(offset, 3000).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            refused
        }));
    }
    for step in 0..40 {
        resize(&volume, if step % 2 == 0 { SIZE / 4 } else { SIZE }).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut refused = 0;
    for writer in writers {
        refused += writer.await.unwrap();
    }
    assert!(refused > 0, "nothing was in flight across the end");
    resize(&volume, SIZE / 4).await;
    resize(&volume, SIZE).await;
    assert_zeros(&volume, SIZE / 4, SIZE - SIZE / 4).await;
    volume.close().await.unwrap();
    assert_sound(&rig).await;
}

/// A host that resized the volume, and wrote beyond the old end or up to the new one, while the store was away; then another
/// took the volume over. What the first one's log holds comes to `size_bytes`.
async fn overtaken(size_bytes: u64) -> Rig {
    let mut rig = rig().await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    write(&volume, 100, 50_000, 1).await;
    volume.sync().await.unwrap();
    rig.faulty.set_crash_after(Some(0));
    resize(&volume, 2 * SIZE).await;
    write(&volume, 2 * SIZE - 1000, 1000, 2).await;
    resize(&volume, SIZE / 2).await;
    resize(&volume, size_bytes).await;
    write(&volume, size_bytes - 500, 500, 3).await;
    volume.flush().await.unwrap();
    drop(volume);
    rig.faulty.set_crash_after(None);
    let (other, report) = rig.open(1, WHATEVER).await.unwrap();
    assert_eq!(report.newest.size_bytes, SIZE);
    write(&other, 0, 10, 9).await;
    other.close().await.unwrap();
    rig
}

async fn rescue_to(rig: &Rig, env: Env) -> Result<Rescued, VolumeError> {
    let secret = Secret::password("secret");
    let cost = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
    let destination = Destination { env, secret: &secret, cost, settings: rig.settings.clone() };
    rescue(&host(rig, 0), &bucket(rig).await, destination, |_| {}).await
}

async fn assert_rescued(memory: &Memory, size_bytes: u64) {
    let (volume, _) = reopen(memory, &Disks::new(), 78).await.unwrap();
    assert_eq!(volume.info().size_bytes, size_bytes);
    assert_eq!(read(&volume, 0, 100).await, [0; 100]);
    assert_eq!(read(&volume, 100, 50_000).await, [1; 50_000]);
    assert_eq!(read(&volume, size_bytes - 500, 500).await, [3; 500]);
    assert_zeros(&volume, 50_100, size_bytes - 500 - 50_100).await;
}

#[tokio::test(start_paused = true)]
async fn a_resized_volume_that_was_fenced_is_counted_and_rescued_with_its_size() {
    for size_bytes in [4 * SIZE, SIZE / 4] {
        let rig = overtaken(size_bytes).await;
        match inspect(&host(&rig, 0), &bucket(&rig).await, Agreed::default(), &Default::default()).await {
            Err(VolumeError::Diverged {
                held: Tally { writes: 2, bytes: 1500, zeroes: 0, resizes: 3 },
                ..
            }) => {}
            other => panic!("{other:?}"),
        }
        let memory = Memory::new();
        let done = rescue_to(&rig, env(Arc::new(memory.clone()), &Disks::new(), 77, "host 0")).await.unwrap();
        assert_eq!(done.replayed.size_bytes, Some(size_bytes));
        assert_rescued(&memory, size_bytes).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rescue_with_other_sizes_may_be_interrupted_anywhere_and_run_again() {
    for size_bytes in [4 * SIZE, SIZE / 4] {
        let rig = overtaken(size_bytes).await;
        for changes in 0.. {
            let memory = Memory::new();
            let faulty = Faulty::new(memory.clone());
            let disks = Disks::new();
            faulty.set_crash_after(Some(changes));
            let first = env(retrying(faulty.clone(), 3), &disks, 500, "rescuer");
            // A call that waits for a dead store is one that never returns.
            let whole = tokio::time::timeout(Duration::from_secs(3600), rescue_to(&rig, first)).await;
            if whole.is_ok_and(|rescued| rescued.is_ok()) {
                assert!(changes > 5, "{changes}");
                break;
            }
            faulty.set_crash_after(None);
            let again = env(retrying(faulty, 4), &disks.crash(changes), 501 + changes, "rescuer");
            match rescue_to(&rig, again).await {
                // All but its last step had been done.
                Ok(_) | Err(VolumeError::Exists { .. }) => {}
                Err(error) => panic!("after {changes} changes: {error}"),
            }
            assert_rescued(&memory, size_bytes).await;
        }
    }
}
