use super::*;

fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    let file = disk.open(name).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    Some(bytes)
}

/// A disk with one synced file of four sectors of ones.
fn disk_with_ones() -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::new();
    let file = disk.create("x", 2048).unwrap();
    file.write_at(&[1; 2048], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync().unwrap();
    (disk, file)
}

#[test]
fn what_was_synced_survives_every_crash() {
    let (disk, _file) = disk_with_ones();
    for seed in 0..200 {
        assert_eq!(content(&disk.crash(seed), "x").unwrap(), [1; 2048]);
    }
}

#[test]
fn unsynced_sectors_are_kept_or_dropped_each_by_itself() {
    let (disk, file) = disk_with_ones();
    file.write_at(&[2; 2048], 0).unwrap();
    file.write_at(&[3; 1024], 512).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..2000 {
        let bytes = content(&disk.crash(seed), "x").unwrap();
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        seen.insert(sectors);
    }
    // 2 * 3 * 3 * 2 ways.
    assert_eq!(seen.len(), 36);
}

#[test]
fn unsynced_names_are_in_doubt_and_keep_their_order() {
    let (disk, _file) = disk_with_ones();
    disk.rename("x", "y").unwrap();
    disk.create("x", 0).unwrap();
    disk.create("z", 0).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..500 {
        let crashed = disk.crash(seed);
        let names = crashed.list().unwrap();
        // The file is there under one of its names, and never lost.
        let kept =
            names.iter().filter(|name| content(&crashed, name).is_some_and(|bytes| bytes == [1; 2048]));
        assert_eq!(kept.count(), 1, "{names:?}");
        seen.insert(names);
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}

#[test]
fn a_failed_sync_loses_what_reads_still_see() {
    let (disk, file) = disk_with_ones();
    file.write_at(&[2; 2048], 0).unwrap();
    disk.fail_syncs(true);
    file.sync_data().unwrap_err();
    disk.fail_syncs(false);
    file.sync_data().unwrap();
    assert_eq!(content(&disk, "x").unwrap(), [2; 2048]);
    for seed in 0..50 {
        assert_eq!(content(&disk.crash(seed), "x").unwrap(), [1; 2048]);
    }
    file.write_at(&[2; 1], 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(content(&disk.crash(0), "x").unwrap()[..512], [2; 512]);
}

#[test]
fn a_lying_sync_keeps_nothing() {
    let (disk, file) = disk_with_ones();
    disk.lie(true);
    file.write_at(&[2; 2048], 0).unwrap();
    file.sync_data().unwrap();
    assert!((0..50).any(|seed| content(&disk.crash(seed), "x").unwrap() == [1; 2048]));
}

#[test]
fn a_full_disk_refuses_growth_and_nothing_else() {
    let (disk, file) = disk_with_ones();
    disk.set_capacity(Some(3000));
    assert_eq!(disk.create("y", 1000).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.write_at(&[0; 1000], 2048).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.write_at(&[9; 2048], 0).unwrap();
    assert_eq!(disk.list().unwrap(), ["x"]);
    disk.remove("x").unwrap();
    disk.create("y", 3000).unwrap();
}

#[test]
fn the_operation_it_dies_at_may_or_may_not_have_happened() {
    let (disk, file) = disk_with_ones();
    disk.die_at(disk.operations() + 1);
    file.write_at(&[2; 512], 0).unwrap_err();
    assert!(disk.is_dead());
    disk.list().unwrap_err();
    let first = |seed| content(&disk.crash(seed), "x").unwrap()[0];
    assert!((0..50).any(|seed| first(seed) == 1) && (0..50).any(|seed| first(seed) == 2));
}

#[test]
fn one_seed_gives_one_crash() {
    let (disk, file) = disk_with_ones();
    for value in 2..20 {
        file.write_at(&[value; 700], u64::from(value) * 61).unwrap();
    }
    for seed in 0..50 {
        assert_eq!(content(&disk.crash(seed), "x"), content(&disk.crash(seed), "x"));
    }
}

#[test]
fn an_older_copy_can_be_put_back() {
    let (disk, file) = disk_with_ones();
    let copy = disk.snapshot();
    file.write_at(&[2; 512], 0).unwrap();
    assert!(disk.flip_bit("x", 600, 3));
    assert_eq!(content(&disk, "x").unwrap()[600], 9);
    disk.put_back(&copy);
    assert_eq!(content(&disk, "x").unwrap(), [1; 2048]);
}
