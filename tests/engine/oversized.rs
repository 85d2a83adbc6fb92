//! Small objects that somebody made long: no more is fetched of them than they can have, and they are refused.

use std::sync::Arc;

use s3bd::{
    format::{
        envelope::{MANIFEST_BYTES_MAX, SMALL_BYTES_MAX},
        names,
    },
    fsck::{Finding, Level, Options, check_store},
    seal::slot::Secret,
    store::{
        Range, Store,
        memory::Memory,
        metered::{Meter, Metered},
    },
    volume::{bucket::Bucket, error::VolumeError, slots},
};

use crate::host::{Disks, make, reopen};

/// A volume of which the first object below `prefix` got so many bytes, the last of which are what it had before.
async fn with_long(prefix: &str, bytes: u64) -> (Memory, String) {
    let store = Memory::new();
    make(&store, 1 << 20).await;
    let (volume, _) = reopen(&store, &Disks::new(), 1).await.unwrap();
    volume.close().await.unwrap();
    // The newest: what every opening needs.
    let name = store.list(prefix, None, None).await.unwrap().pop().unwrap().key;
    let end = store.get(&name, Range::Full).await.unwrap().bytes;
    let mut long = vec![0; usize::try_from(bytes).unwrap() - end.len()];
    long.extend_from_slice(&end);
    let mut contents = store.snapshot();
    contents.set(&name, long.into());
    store.restore(contents);
    (store, name)
}

#[tokio::test(start_paused = true)]
async fn what_is_longer_than_it_can_be_is_refused_and_not_fetched() {
    for (prefix, bytes_max) in [
        (names::HEADER, SMALL_BYTES_MAX),
        (names::KEYS, SMALL_BYTES_MAX),
        (names::CLAIMS, SMALL_BYTES_MAX),
        (names::MANIFESTS, MANIFEST_BYTES_MAX),
    ] {
        let (store, name) = with_long(prefix, bytes_max + 1).await;
        let meter = Meter::default();
        let metered: Arc<dyn Store> = Arc::new(Metered::new(store.clone(), meter.clone()));
        let secret = Secret::password("secret");
        let opened = async {
            let bucket = Bucket::unlock(Arc::clone(&metered), &secret).await?;
            let newest = bucket.newest_manifest().await?;
            let claims = bucket.list_claims(None).await?;
            for (generation, nonce) in claims {
                bucket.load_claim(generation, nonce).await?;
            }
            Ok::<_, VolumeError>(newest)
        };
        let error = opened.await.unwrap_err().to_string();
        assert!(error.contains(&name) && error.contains("larger than"), "{name}: {error}");
        slots::load_slots(&*metered).await.unwrap();
        let options = Options { level: Level::Quick, concurrency: 3 };
        let report = check_store(Arc::clone(&metered), &secret, &options, &()).await.unwrap();
        let found = report.findings.iter().any(|finding| match finding {
            Finding::HeaderDamaged { .. } => name == names::HEADER,
            Finding::SlotDamaged { name: damaged, .. }
            | Finding::ClaimDamaged { name: damaged, .. }
            | Finding::ManifestDamaged { name: damaged, .. } => *damaged == name,
            Finding::KeysUnusable { detail } => detail.contains(&name),
            _ => false,
        });
        assert!(found, "{name}: {report:#?}");
        // As often as damage is fetched again, the bound of one at most.
        let fetched = meter.snapshot().get.bytes;
        assert!(fetched < 8 * bytes_max, "{name}: {fetched} bytes");
    }
}
