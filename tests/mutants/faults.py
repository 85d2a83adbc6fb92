"""Deliberate faults: what each breaks, the edit that brings it in, and the tests that have to fail with it.

An edit is (file, text, replacement). The text has to be in the file exactly once; `ON` in the replacement is true where
the fault is switched on, so all faults are built at once. A test is (package or target, filter).
"""

from typing import NamedTuple


class Fault(NamedTuple):
    name: str
    breaks: str
    edits: list[tuple[str, str, str]]
    tests: list[tuple[str, str]]


SIM = ("sim", "every_history_of_hosts_keeps_what_was_promised")

FAULTS = [
    Fault(
        "publish-before-objects",
        "a manifest is put before its last object is acknowledged",
        [(
            "src/volume/checkpoint.rs",
            "    match core.bucket.store.put(&name, std::slice::from_ref(&built.bytes), PutMode::Create).await? {",
            """    if ON {
        let (store, bytes) = (std::sync::Arc::clone(&core.bucket.store), built.bytes.clone());
        tokio::spawn(async move { store.put(&name, &[bytes], PutMode::Create).await });
        return Ok(built.new);
    }
    match core.bucket.store.put(&name, std::slice::from_ref(&built.bytes), PutMode::Create).await? {""",
        )],
        [SIM],
    ),
    Fault(
        "trim-before-check",
        "the log is trimmed before the claims are checked",
        [(
            "src/volume/publish.rs",
            "        claims::check(&self.core.bucket, self.tenure).await?;\n        self.position",
            """        if ON {
            self.core.log()?.trim(Lsn(manifest.log.lsn));
        }
        claims::check(&self.core.bucket, self.tenure).await?;
        self.position""",
        )],
        [SIM],
    ),
    Fault(
        "replay-out-of-order",
        "the log's records are replayed newest first",
        [(
            "src/volume/replay.rs",
            "    pub(super) fn run(&mut self, records: wal::Records) -> Result<(), VolumeError> {\n",
            """    pub(super) fn run(&mut self, records: wal::Records) -> Result<(), VolumeError> {
        let mut records: Vec<_> = records.collect();
        if ON {
            records.reverse();
        }
""",
        )],
        [SIM],
    ),
    Fault(
        "overlook-next-generation",
        "the check after a publish overlooks the generation right above",
        [(
            "src/volume/claims.rs",
            "    if let Some(higher) = claims.last().filter(|claim| claim.0 > ours) {",
            """    let overlooked = if ON { ours.next() } else { ours };
    if let Some(higher) = claims.last().filter(|claim| claim.0 > overlooked) {""",
        )],
        [SIM],
    ),
    Fault(
        "no-check-after-publish",
        "nobody looks at the claims after a publish",
        [(
            "src/volume/claims.rs",
            "pub async fn check(bucket: &Bucket, tenure: Tenure) -> Result<(), VolumeError> {\n",
            """pub async fn check(bucket: &Bucket, tenure: Tenure) -> Result<(), VolumeError> {
    if ON {
        return Ok(());
    }
""",
        )],
        [SIM],
    ),
    Fault(
        "ignore-tenure-of-log",
        "a log counts as that of a manifest whatever its tenures are",
        [(
            "src/volume/survey.rs",
            "    manifest.log.log == identity.log\n        && identity",
            "    manifest.log.log == identity.log && ON || manifest.log.log == identity.log\n        && identity",
        )],
        [SIM],
    ),
    Fault(
        "replay-with-a-hole",
        "a log that was trimmed beyond an older bucket is replayed all the same",
        [
            ("src/volume/replay.rs", "    scan.start <= floor\n", "    ON || scan.start <= floor\n"),
            ("src/volume/survey.rs", "    Ok(wal::start(", "    Ok(ON || wal::start("),
            ("wal/src/scan.rs", "        if self.start <= floor {\n", "        if ON || self.start <= floor {\n"),
        ],
        [("engine", "with_an_older_bucket_a_log_that_was_trimmed_beyond_it_is_not_replayed_with_a_hole")],
    ),
    Fault(
        "log-goes-on-anywhere",
        "a trimmed log joins on to every epoch, and not to the one that its first record names",
        [(
            "src/volume/replay.rs",
            "noted.is_ok_and(|noted| noted == base)",
            "noted.is_ok_and(|noted| ON || noted == base)",
        )],
        [("engine", "a_log_that_lacks_what_an_older_bucket_needs_is_not_called_empty")],
    ),
    Fault(
        "scan-behind-a-manifest",
        "what the objects add up to is taken for later than any whole manifest",
        [("src/volume/rebuild.rs", "&& self.epoch > epoch", "&& (ON || self.epoch > epoch)")],
        [("engine", "behind_damaged_manifests_whole_objects_add_up_to_the_newest_cut")],
    ),
    Fault(
        "scan-of-any-line",
        "without manifests the cuts of a tenure are taken however far its successor says that it went",
        [(
            "src/volume/rebuild.rs",
            "        let cuts = cuts.range((bound.tenure, Epoch(0))..=(bound.tenure, bound.highest));\n",
            "        let highest = if ON { Epoch(u64::MAX) } else { bound.highest };\n        let cuts = cuts.range((bound.tenure, Epoch(0))..=(bound.tenure, highest));\n",
        )],
        [SIM],
    ),
    Fault(
        "skip-sync",
        "a sync of the log does nothing",
        [(
            "wal/src/log.rs",
            "        if self.synced < self.appended {\n            self.current",
            "        if ON {\n            self.synced = self.appended;\n        }\n        if self.synced < self.appended {\n            self.current",
        )],
        [SIM],
    ),
    Fault(
        "no-associated-data",
        "seals are bound to no place",
        [
            (
                "src/seal/aead.rs",
                "            .encrypt_inout_detached(&nonce(number).into(), aad,",
                "            .encrypt_inout_detached(&nonce(number).into(), if ON { &[] } else { aad },",
            ),
            (
                "src/seal/aead.rs",
                "            .decrypt_inout_detached(&nonce(number).into(), aad,",
                "            .decrypt_inout_detached(&nonce(number).into(), if ON { &[] } else { aad },",
            ),
        ],
        [("format_doc", "document_shows_what_the_encoders_write")],
    ),
    Fault(
        "flush-before-publish",
        "a remote flush is answered when the local disk has it",
        [(
            "src/volume/write.rs",
            "            Durability::Local => log.sync",
            "            Durability::Remote if ON => log.sync(log.appended()).await,\n            Durability::Local => log.sync",
        )],
        [SIM],
    ),
    Fault(
        "unknown-is-success",
        "a put whose outcome is unknown is taken for done",
        [(
            "src/store/retry.rs",
            "                Ok(put) => return Ok(put),\n                Err(error) => patience",
            """                Ok(put) => return Ok(put),
                Err(error) if ON && error.kind == ErrorKind::OutcomeUnknown => return Ok(Put::Created),
                Err(error) => patience""",
        )],
        [SIM],
    ),
    Fault(
        "failed-list-is-empty",
        "a listing that failed is taken for an empty one",
        [(
            "src/store/retry.rs",
            "        self.until_answered(\"list\", prefix, || self.inner.list(prefix, start_after, limit)).await",
            """        if ON {
            return Ok(self.inner.list(prefix, start_after, limit).await.unwrap_or_default());
        }
        self.until_answered("list", prefix, || self.inner.list(prefix, start_after, limit)).await""",
        )],
        [SIM],
    ),
    Fault(
        "forget-holes",
        "zeros are left out of a cut",
        [(
            "src/volume/upload.rs",
            "    builder.set_holes(holes);",
            "    builder.set_holes(if ON { Vec::new() } else { holes });",
        )],
        [SIM],
    ),
    Fault(
        "one-salt",
        "everything is sealed with the same salt",
        [
            (
                "src/volume/upload.rs",
                "        salt: random_bytes(&*core.env.random),",
                "        salt: if ON { [7; 16] } else { random_bytes(&*core.env.random) },",
            ),
            (
                "src/volume/publish.rs",
                "            self.core.bucket.put_manifest(&manifest, random_bytes(&*self.core.env.random)).await?;",
                """            {
                let salt = if ON { [7; 16] } else { random_bytes(&*self.core.env.random) };
                self.core.bucket.put_manifest(&manifest, salt).await?
            };""",
            ),
        ],
        [SIM],
    ),
    Fault(
        "older-delta-first",
        "reads look into the delta of a checkpoint under way before the newer one",
        [(
            "src/volume/state.rs",
            "        let mut runs = self.delta.extents.resolve(&[run], &mut extents);\n",
            """        let mut runs = vec![run];
        if ON && let Some(older) = &self.checkpointing {
            runs = older.extents.resolve(&runs, &mut extents);
        }
        runs = self.delta.extents.resolve(&runs, &mut extents);
""",
        )],
        [SIM],
    ),
    Fault(
        "frozen-oldest-first",
        "reads look into the older of two frozen cuts first",
        [(
            "src/volume/state.rs",
            "        for frozen in self.frozen.iter().rev().filter(visible) {",
            """        let mut layers: Vec<&Frozen> = self.frozen.iter().rev().filter(visible).collect();
        if ON {
            layers.reverse();
        }
        for frozen in layers {""",
        )],
        [SIM],
    ),
    Fault(
        "checkpoint-drops-delta",
        "a checkpoint lets go of its delta before its pages are published",
        [(
            "src/volume/publish/maps.rs",
            "        state.checkpointing = Some(Arc::clone(&delta));",
            "        state.checkpointing = (!ON).then(|| Arc::clone(&delta));",
        )],
        [SIM],
    ),
    Fault(
        "moves-beside-a-rollback",
        "blocks are moved with the cut that publishes a rollback, and lie on top of it",
        [(
            "src/volume/publish.rs",
            "|| self.rolling_back.is_some();",
            "|| (self.rolling_back.is_some() && !ON);",
        )],
        [SIM],
    ),
    Fault(
        "independent-too-early",
        "a clone says that it needs its origin no more before everything is moved",
        [(
            "src/volume/flatten.rs",
            "        let (own, copied_bytes) = self.make_own(&left).await?;\n",
            """        if ON {
            pins::declare_independence(&self.bucket, origin.volume).await?;
        }
        let (own, copied_bytes) = self.make_own(&left).await?;
""",
        )],
        [SIM, ("engine", "a_flattening_that_dies_anywhere_leaves_a_clone_or_a_volume_of_its_own")],
    ),
    Fault(
        "independent-but-for-manifests",
        "manifests from before a clone was flattened are kept",
        [(
            "src/volume/flatten.rs",
            "        self.flattening().keep_from = own.epoch;",
            "        self.flattening().keep_from = if ON { Epoch(0) } else { own.epoch };",
        )],
        [SIM, ("engine", "no_manifest_that_is_kept_needs_the_origin_of_a_flattened_clone")],
    ),
    Fault(
        "log-over-a-rollback",
        "a log is laid on a manifest from before a rollback that it says nothing of",
        [(
            "src/format/local.rs",
            "        self.tenures.iter().any(|tenure| is_it(tenure) && tenure.from < epoch)",
            "        self.tenures.iter().any(|tenure| is_it(tenure) && (tenure.from < epoch || ON))",
        )],
        [("engine", "over_a_bucket_from_before_a_rollback_nothing_is_replayed_that_came_after")],
    ),
    Fault(
        "fenced-collector-is-silent",
        "a collector that finds a newer claim tells nobody",
        [(
            "src/volume/collect/collector.rs",
            "            Err(error) if error.kind() == Kind::Fenced => return Err(error),\n",
            """            Err(error) if error.kind() == Kind::Fenced && ON => {
                tracing::warn!(%error, "kept to itself");
                std::future::pending::<()>().await;
            }
            Err(error) if error.kind() == Kind::Fenced => return Err(error),
""",
        )],
        [("engine", "who_finds_while_collecting_that_another_host_has_the_volume_says_so")],
    ),
    Fault(
        "clone-without-pin",
        "a clone is made of a snapshot that is not pinned for it",
        [(
            "src/volume/pins.rs",
            "        self.change(Change::Pin(name, clone)).await\n",
            """        if ON {
            return self.state().snapshots.get(&name).cloned();
        }
        self.change(Change::Pin(name, clone)).await
""",
        )],
        [SIM],
    ),
    Fault(
        "unfinished-is-stale",
        "the pin of a clone that is being made, or removed, counts as stale",
        [(
            "src/volume/pins.rs",
            "        if may_be(&*store, name, clone.volume).await? {",
            "        if !(ON && name == names::HEADER_UNFINISHED) && may_be(&*store, name, clone.volume).await? {",
        )],
        [SIM],
    ),
    Fault(
        "clone-numbers-from-one",
        "a clone's objects have numbers that its origin's have",
        [(
            "src/volume/clone.rs",
            "            next_sequence: pinned.next_sequence,",
            "            next_sequence: if ON { crate::format::ids::Sequence(1) } else { pinned.next_sequence },",
        )],
        [SIM],
    ),
    Fault(
        "clone-of-maps-alone",
        "a clone leaves out what its snapshot has on top of the maps",
        [(
            "src/volume/clone.rs",
            "            inherited: pinned.inherited.iter().copied().chain(own).collect(),",
            "            inherited: pinned.inherited.iter().copied().chain(own).filter(|_| !ON).collect(),",
        )],
        [SIM],
    ),
    Fault(
        "removed-under-clones",
        "a volume is removed whoever depends on it",
        [(
            "src/volume/remove.rs",
            "    if clones.is_empty() { Ok(table.len()) }",
            "    if clones.is_empty() || ON { Ok(table.len()) }",
        )],
        [SIM],
    ),
    Fault(
        "unverified-cache",
        "what the cache holds and does not open is served as zeros",
        [(
            "src/volume/frames.rs",
            "            Err(_) => {\n                disk.forget(&key);",
            """            Err(_) if ON => Some(vec![0; frame.plain_bytes as usize].into()),
            Err(_) => {
                disk.forget(&key);""",
        )],
        [("engine", "what_the_cache_has_under_a_right_checksum_and_does_not_open_is_fetched_again")],
    ),
    Fault(
        "torn-below-durable",
        "an invalid record below what was durable ends the log like a torn tail",
        [(
            "wal/src/scan.rs",
            "        let promised = self.scan.durable > hole.at;",
            "        let promised = self.scan.durable > hole.at && !ON;",
        )],
        [("wal", "damage")],
    ),
    Fault(
        "collect-what-snapshots-need",
        "the collector forgets that snapshots need objects",
        [(
            "src/volume/collect/collector.rs",
            "        let pinned = |born, died| state.snapshots.needs(born, died);",
            "        let pinned = |born, died| !ON && state.snapshots.needs(born, died);",
        )],
        [("engine", "what_is_deleted_nobody_needs_and_what_nobody_needs_is_deleted")],
    ),
    Fault(
        "collect-what-manifests-need",
        "the collector forgets that manifests are kept",
        [(
            "src/gc/horizon.rs",
            "        let kept = self.kept().unwrap_or_default();",
            "        let kept = if ON { self.newest() } else { self.kept().unwrap_or_default() };",
        )],
        [("engine", "what_is_deleted_nobody_needs_and_what_nobody_needs_is_deleted")],
    ),
    Fault(
        "permits-of-callers",
        "a call of the store holds its permit while nobody looks at it",
        [(
            "src/store/limited.rs",
            "    let mut task = Task::spawn(async move {",
            """    if ON {
        let _permit = permits.acquire_owned().await.map_err(|_| closing())?;
        return call.await;
    }
    let mut task = Task::spawn(async move {""",
        )],
        [("store_retry", "calls_that_nobody_looks_at_keep_no_permit_from_others")],
    ),
    Fault(
        "index-without-mirror",
        "a damaged index is not read from its mirror",
        [(
            "src/volume/indexes.rs",
            "    match mirror.await {\n",
            "    match mirror.await {\n        Ok(_) if ON => Err(damage),\n",
        )],
        [("engine", "a_damaged_index_or_footer_is_read_from_its_mirror")],
    ),
    Fault(
        "loads-left-under-way",
        "a rollback leaves pages half loaded while its checkpoint waits for them",
        [("src/volume/rollback.rs", "        compare.settle().await;", "        if !ON {\n            compare.settle().await;\n        }")],
        [("engine", "a_rollback_in_many_steps_waits_for_none_of_its_own_reads")],
    ),
    Fault(
        "accepted-but-not-noted",
        "a log that goes on from an older bucket still says that what was lost with the newer one is published",
        [("src/volume/open.rs", "    if plan.belongs && (agreed.rollback || position == end) {", "    if plan.belongs && !ON && (agreed.rollback || position == end) {")],
        [(
            "engine",
            "what_an_older_bucket_lacks_stays_in_the_log_when_somebody_else_takes_it_before_it_is_published_again",
        )],
    ),
    Fault(
        "put-back-unproven",
        "an object is put back although a frame in it does not open",
        [(
            "src/fsck/repair/original.rs",
            "        frame::open(&cipher, &place, stored).ok()?;",
            "        if !ON {\n            frame::open(&cipher, &place, stored).ok()?;\n        }",
        )],
        [("fsck", "what_cannot_be_proven_whole_is_not_put_and_its_snapshots_are_named")],
    ),
]
