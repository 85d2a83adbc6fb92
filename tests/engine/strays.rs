//! Which objects are strays, and that nothing else goes with them.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use s3bd::{
    format::{
        ids::{Generation, Sequence},
        names,
    },
    nbd::Device,
    store::{PutMode, Store},
    volume::{open::Agreed, settings::Settings, snapshots::Change, strays},
};

use crate::{
    host::{Disks, env, small_settings, unlock},
    rig::Rig,
};

fn names_in(rig: &Rig) -> BTreeSet<String> {
    rig.memory.snapshot().iter().map(|(name, _)| name.to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_old_stray_goes_and_a_young_one_and_all_that_is_named_stay() {
    let never = Duration::from_secs(1 << 30);
    // Named by the table, or by the manifest's list.
    for checkpoint_objects in [2, 1000] {
        let settings = Settings { checkpoint_objects, gc_idle: never, gc_grace: never, ..small_settings() };
        let mut rig = Rig::new(1, 1 << 20, 4096, settings).await;
        let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
        let generation = volume.core().progress.borrow().generation;
        for place in 0..5 {
            volume.write(place << 14, Bytes::from(vec![7; 16 << 10]), false).await.unwrap();
            volume.sync().await.unwrap();
        }
        volume.core().change(Change::Take("pinned".to_owned())).await.unwrap();
        drop(volume);
        let stray = |generation: Generation, number| names::object(generation, Sequence(number));
        let (old, young) = (stray(generation, 900), stray(generation, 901));
        let put = async |rig: &Rig, name: &str| {
            rig.memory.put(name, &[Bytes::from_static(b"stray")], PutMode::Create).await.unwrap();
        };
        put(&rig, &old).await;
        tokio::time::sleep(Duration::from_secs(12 * 3600)).await;
        put(&rig, &young).await;
        tokio::time::sleep(Duration::from_secs(13 * 3600)).await;
        let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
        // One under way of a tenure that serves is never one.
        let own = stray(volume.core().progress.borrow().generation, 902);
        put(&rig, &own).await;
        volume.write(0, Bytes::from(vec![8; 4096]), false).await.unwrap();
        volume.sync().await.unwrap();

        let before = names_in(&rig);
        let looker = env(rig.store.clone(), &Disks::new(), 50, "looker");
        let counted = strays::count(&unlock(&looker).await).await.unwrap();
        assert_eq!((counted.objects, counted.bytes), (1, 5), "{checkpoint_objects}");
        assert_eq!(names_in(&rig), before, "counting changes nothing");
        assert_eq!(volume.core().delete_strays().await.unwrap(), counted);
        let after = names_in(&rig);
        assert_eq!(before.difference(&after).collect::<Vec<_>>(), [&old], "{checkpoint_objects}");
        assert!(after.contains(&young) && after.contains(&own));
        assert_eq!(volume.core().delete_strays().await.unwrap(), strays::Strays::default());
        let parts = volume.read(4096, 60 << 10).await.unwrap();
        assert!(parts.iter().flatten().all(|byte| *byte == 7));
    }
}
