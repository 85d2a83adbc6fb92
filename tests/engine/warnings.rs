//! What the log of the server says of bytes that came damaged: no more than there is to say.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use s3bd::{
    format::names,
    nbd::Device,
    store::{
        Store,
        faulty::{Call, Fault, Faulty},
        memory::Memory,
    },
    volume::{open::Agreed, pack, settings::Settings},
};
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::{
    host::{Disks, env, make, open_with, small_settings},
    rig::retrying,
};

/// Counts warnings and errors.
#[derive(Clone, Debug, Default)]
struct Counting(Arc<Mutex<(u64, u64)>>);

impl Subscriber for Counting {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("s3bd")
    }

    fn event(&self, event: &Event<'_>) {
        let mut counts = self.0.lock().unwrap();
        match *event.metadata().level() {
            Level::WARN => counts.0 += 1,
            Level::ERROR => counts.1 += 1,
            _ => {}
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn damaged_bytes_are_one_line_whether_they_are_whole_the_next_time_or_never() {
    let store = Faulty::new(Memory::new());
    make(store.inner(), 1 << 20).await;
    let settings = Settings { memory_bytes_max: 0, cache_bytes_max: 0, ..small_settings() };
    let here = env(retrying(store.clone(), 1), &Disks::new(), 7, "here");
    let (volume, _) = open_with(here, settings, Agreed::default()).await.unwrap();
    volume.write(0, Bytes::from(vec![1; 512]), false).await.unwrap();
    volume.sync().await.unwrap();
    let counting = Counting::default();
    let _guard = tracing::subscriber::set_default(counting.clone());
    // The first is of neighbours together, the second of one frame alone.
    for (damaged, expected) in [(0, (0, 0)), (1, (1, 0)), (2, (2, 0)), (u64::MAX, (2, 1))] {
        let calls = AtomicU64::new(0);
        store.set_plan(move |call: &Call<'_>| {
            let is_get = call.operation == "get" && call.key.starts_with("objects/");
            match is_get && calls.fetch_add(1, Ordering::Relaxed) < damaged {
                true => Fault::FlipBit(600),
                false => Fault::None,
            }
        });
        assert_eq!(volume.read(0, 512).await.is_ok(), damaged < u64::MAX);
        assert_eq!(*counting.0.lock().unwrap(), expected, "{damaged} damaged answers");
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_object_is_one_line_however_many_frames_it_had() {
    let store = Memory::new();
    make(&store, 1 << 20).await;
    let settings =
        Settings { memory_bytes_max: 0, cache_bytes_max: 0, object_bytes: 1 << 20, ..small_settings() };
    let here = env(Arc::new(store.clone()), &Disks::new(), 7, "here");
    let (volume, _) = open_with(here, settings, Agreed::default()).await.unwrap();
    let step = pack::FRAME_BYTES as usize;
    let data: Vec<u8> = (0..8 * step).map(|at| ((at * 7919) >> 3) as u8).collect();
    volume.write(0, Bytes::from(data), false).await.unwrap();
    volume.sync().await.unwrap();
    let objects = store.list(names::OBJECTS, None, None).await.unwrap();
    let largest = objects.iter().max_by_key(|listed| listed.bytes).unwrap().key.clone();
    store.delete(&[largest]).await.unwrap();
    let counting = Counting::default();
    let _guard = tracing::subscriber::set_default(counting.clone());
    for frame in 0..8 {
        assert!(volume.read(frame * step as u64, 512).await.is_err());
    }
    assert_eq!(*counting.0.lock().unwrap(), (0, 1));
}
