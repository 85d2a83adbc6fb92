//! Going back, and what differs, where a clone reads what its origin holds.

use s3bd::volume::{
    diff::{Changed, Now, TwoEpochs},
    walk::Direct,
};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_clone_goes_back_to_before_its_first_checkpoint_and_forth_again() {
    for (closes, origin_closes) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut street = Street::new(240, Settings { checkpoint_objects: 100, ..small_settings() });
        let mut prng = Prng::new(241);
        street.init("origin", SIZE).await;
        let mut origin = Pair { volume: street.open("origin").await, wanted: vec![0; SIZE as usize] };
        origin.write(&mut prng, 0, 40_000).await;
        origin.trim(10_000, 5000).await;
        if origin_closes {
            // Then the clone begins with roots of its origin, and something on top.
            origin.volume.close().await.unwrap();
            origin.volume = street.open("origin").await;
        }
        origin.write(&mut prng, 20_000, 7000).await;
        street.clone_open("origin", &origin.volume, None, "clone").await.unwrap();
        let mut clone = Pair { volume: street.open("clone").await, wanted: origin.wanted.clone() };
        origin.trim(0, SIZE as usize).await;
        origin.volume.close().await.unwrap();

        let first = clone.volume.core().change(Change::Take("first".to_owned())).await.unwrap();
        let held = clone.wanted.clone();
        let bucket = street.unlock("clone").await.unwrap();
        let pinned = pinned_manifest(&bucket, &first).await.unwrap().manifest;
        assert!(!pinned.inherited.is_empty(), "no checkpoint of its own yet");
        clone.write(&mut prng, 512 * 50, 512 * 20).await;
        clone.trim(512 * 4, 512 * 2).await;
        clone.volume.sync().await.unwrap();
        if closes {
            clone.volume.close().await.unwrap();
            clone.volume = street.open("clone").await;
        }
        let newest = bucket.newest_manifest().await.unwrap().manifest;
        assert_eq!(newest.inherited.is_empty(), closes);
        let direct = Direct::new(bucket.clone());
        let epochs = TwoEpochs::load(&bucket, &pinned, &newest).await.unwrap();
        let mut ranges = epochs.ranges(&direct);
        let mut changed = Vec::new();
        while let Some(Changed { offset, length, now }) = ranges.next().await.unwrap() {
            changed.push((offset / 512, length / 512, now));
        }
        assert_eq!(changed, [(4, 2, Now::Zero), (50, 20, Now::Data)]);

        let back = clone.volume.core().roll_back("first", true).await.unwrap();
        let later = std::mem::replace(&mut clone.wanted, held.clone());
        clone.assert_as_wanted("back").await;
        clone.volume.close().await.unwrap();
        street.assert_sound("clone").await;
        street.hosts.clear();
        clone.volume = street.open("clone").await;
        clone.assert_as_wanted("back, elsewhere").await;
        clone.volume.core().roll_back(&back.kept.unwrap(), false).await.unwrap();
        clone.wanted = later;
        clone.assert_as_wanted("forth").await;
        clone.volume.close().await.unwrap();
        street.assert_sound("clone").await;
        street.assert_sound("origin").await;
        street.hosts.clear();
        clone.volume = street.open("clone").await;
        clone.assert_as_wanted("forth, elsewhere").await;
    }
}
