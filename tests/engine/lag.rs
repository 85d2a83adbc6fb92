//! How far behind the bucket may be: bounded by what the user allows, and never at the price of an error.

use std::time::Duration;

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    volume::{Volume, open::Agreed, settings::Settings},
};
use wal::disk::sim::Prng;

use crate::{
    host::small_settings,
    rig::{Rig, noise},
};

const SIZE: u64 = 8 << 20;
const HOUR: Duration = Duration::from_secs(3600);

async fn opened(settings: Settings) -> (Rig, Volume) {
    let mut rig = Rig::new(21, SIZE, 4096, settings).await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    (rig, volume)
}

fn data() -> Bytes {
    noise(&mut Prng::new(3), 4096).into()
}

fn age(volume: &Volume) -> Option<Duration> {
    volume.core().status().unpublished.oldest_age_ms.map(Duration::from_millis)
}

#[tokio::test(start_paused = true)]
async fn writes_wait_when_the_oldest_unpublished_one_is_too_old_and_go_on_when_it_is_published() {
    let lag = Duration::from_secs(20);
    let (rig, volume) = opened(Settings { lag_time_max: Some(lag), ..small_settings() }).await;
    rig.faulty.set_away(true);
    volume.write(0, data(), false).await.unwrap();
    tokio::time::sleep(lag - Duration::from_secs(1)).await;
    volume.write(4096, data(), false).await.expect("not too old yet");
    tokio::time::sleep(Duration::from_secs(1)).await;
    {
        let write = volume.write(8192, data(), false);
        let trim = volume.trim(0, 4096, false);
        tokio::pin!(write, trim);
        assert!(
            tokio::time::timeout(HOUR, &mut write).await.is_err(),
            "the bucket is further behind than allowed"
        );
        assert!(tokio::time::timeout(HOUR, &mut trim).await.is_err(), "a trim is a write");
        volume.flush().await.expect("what was acknowledged is flushed all the same");
        assert_eq!(volume.read(4096, 4096).await.unwrap().concat(), data());
        assert!(age(&volume).unwrap() >= HOUR);
        rig.faulty.set_away(false);
        write.await.expect("no write fails");
        trim.await.expect("no trim fails");
    }
    volume.sync().await.unwrap();
    assert_eq!(age(&volume), None);
    assert_eq!(volume.read(0, 4096).await.unwrap().concat(), [0; 4096]);
    assert_eq!(volume.read(8192, 4096).await.unwrap().concat(), data());
}

#[tokio::test(start_paused = true)]
async fn unpublished_data_never_grows_beyond_what_is_allowed() {
    let lag = 64 << 10;
    let (rig, volume) = opened(Settings { lag_bytes_max: Some(lag), ..small_settings() }).await;
    let writing = async {
        for block in 0..200 {
            volume.write(block * 4096, data(), false).await.expect("no write fails");
            assert!(volume.core().status().unpublished.bytes <= lag, "block {block}");
        }
    };
    rig.faulty.set_away(true);
    tokio::pin!(writing);
    assert!(tokio::time::timeout(HOUR, &mut writing).await.is_err());
    assert_eq!(volume.core().status().unpublished.bytes, lag, "all that is allowed");
    rig.faulty.set_away(false);
    writing.await;
    // More at once than is allowed at all goes one record at a time.
    volume.write(0, noise(&mut Prng::new(4), 3 << 20).into(), false).await.expect("no write fails");
    volume.sync().await.unwrap();
    assert_eq!(volume.core().status().unpublished.bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn while_the_store_answers_nobody_waits_whatever_the_commit_interval() {
    let lag = Duration::from_secs(10);
    let settings = Settings { lag_time_max: Some(lag), commit_interval: HOUR, ..small_settings() };
    let (_rig, volume) = opened(settings).await;
    for second in 0..120 {
        let write = volume.write(second * 4096, data(), false);
        tokio::time::timeout(Duration::from_millis(100), write).await.expect("at once").unwrap();
        assert!(age(&volume).is_none_or(|age| age < lag), "{second}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(volume.core().status().epoch.0 >= 20, "published every five seconds");
}

#[tokio::test(start_paused = true)]
async fn writers_who_wait_are_told_when_the_tenure_ends() {
    let settings = Settings { lag_time_max: Some(Duration::from_secs(5)), ..small_settings() };
    let (rig, volume) = opened(settings).await;
    rig.faulty.set_away(true);
    volume.write(0, data(), false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let write = volume.write(0, data(), false);
    tokio::pin!(write);
    assert!(tokio::time::timeout(HOUR, &mut write).await.is_err());
    rig.hosts[0].wal.fail_syncs(true);
    assert!(volume.flush().await.is_err());
    assert!(tokio::time::timeout(HOUR, &mut write).await.expect("it is told").is_err());
}
