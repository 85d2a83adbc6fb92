//! Appends to a log on a real disk and says how fast, beside plain writes and syncs of the same bytes to one
//! file.
//!
//! `cargo run --release -p wal --example throughput -- [FOLDER]`

#![allow(clippy::print_stdout, reason = "it is what this program is for")]
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::{
    sync::{Arc, Condvar, Mutex},
    time::Instant,
};

use bytes::Bytes;
use wal::{
    AppendError, Log, Lsn, Mode, Options, PlainSeal, Progress, Writer,
    disk::{Disk, Folder},
};

const SEGMENT_BYTES: u64 = 64 << 20;
const LOG_BYTES_MAX: u64 = 1 << 30;

#[derive(Default)]
struct Watch {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Watch {
    fn wait_for(&self, done: impl Fn(&Progress) -> bool) -> Progress {
        let progress = self.progress.lock().unwrap();
        self.changed.wait_while(progress, |progress| !done(progress)).unwrap().clone()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let place = place.join(format!("wal-throughput-{}", std::process::id()));
    let result = measure(Arc::new(Folder::open(&place)?));
    std::fs::remove_dir_all(&place)?;
    result
}

fn measure(disk: Arc<dyn Disk>) -> Result<(), Box<dyn std::error::Error>> {
    let plain = plain(&*disk, 4096, 200_000, None)?;
    let plain_synced = plain_synced_each(&*disk, 4096, 500)?;
    let options = Options { segment_bytes: SEGMENT_BYTES, log_bytes_max: LOG_BYTES_MAX, tag: [7; 32] };
    let (log, _) = Log::open(Arc::clone(&disk), options.clone(), Lsn::ZERO)?;
    let watch = Arc::new(Watch::default());
    let told = Arc::clone(&watch);
    let on_progress = Box::new(move |progress: &Progress| {
        *told.progress.lock().unwrap() = progress.clone();
        told.changed.notify_all();
    });
    let writer = Writer::start(log, Box::new(PlainSeal), on_progress, Mode::Thread);
    for bytes in [512, 4096, 65536, 1 << 20] {
        let count = (800 << 20) / bytes.max(4096) as u64;
        let rate = appends(&writer, &watch, bytes, count, None);
        report(&format!("append {bytes}, one sync at the end"), bytes, rate, plain);
    }
    let rate = appends(&writer, &watch, 4096, 200_000, Some(64));
    report("append 4096, sync asked for each 64th", 4096, rate, plain);
    let rate = synced_by_threads(&writer, &watch, 1, 500);
    report("append 4096 and wait for its sync, 1 thread", 4096, rate, plain_synced);
    let rate = synced_by_threads(&writer, &watch, 32, 4000);
    report("append 4096 and wait for its sync, 32 threads", 4096, rate, plain_synced);
    writer.close()?;
    reopen(disk, options, writer.progress().trimmed)
}

/// Opens what was closed, and replays it.
fn reopen(disk: Arc<dyn Disk>, options: Options, floor: Lsn) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let (log, scan) = Log::open(disk, options, floor)?;
    let opened = start.elapsed();
    let records = log.records(floor).count();
    let replayed = start.elapsed() - opened;
    let mib = scan.bytes >> 20;
    println!("open: {mib} MiB scanned in {opened:.1?}; {records} records replayed in {replayed:.1?}");
    Ok(())
}

fn report(what: &str, bytes: usize, rate: f64, plain: f64) {
    let mib = rate * bytes as f64 / f64::from(1 << 20);
    println!("{what:48} {rate:10.0}/s {mib:8.1} MiB/s, {:5.2} times plain writes of 4096", rate / plain);
}

/// Writes blocks to one file, a sync at the end or after `each` so many; blocks per second.
fn plain(disk: &dyn Disk, bytes: usize, count: u64, each: Option<u64>) -> std::io::Result<f64> {
    let file = disk.create("plain", bytes as u64 * count)?;
    let block = vec![3; bytes];
    let start = Instant::now();
    for number in 0..count {
        file.write_at(&block, number * bytes as u64)?;
        if each.is_some_and(|each| number % each == 0) {
            file.sync_data()?;
        }
    }
    file.sync_data()?;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    disk.remove("plain")?;
    println!("plain writes of {bytes}{} {rate:.0}/s", if each.is_some() { ", each synced," } else { "" });
    Ok(rate)
}

fn plain_synced_each(disk: &dyn Disk, bytes: usize, count: u64) -> std::io::Result<f64> {
    plain(disk, bytes, count, Some(1))
}

fn append(writer: &Writer, watch: &Watch, body: &Bytes) -> Lsn {
    loop {
        let seen = watch.progress.lock().unwrap().appended;
        match writer.append(1, &[0; 24], body.clone()) {
            Ok(appended) => return appended.end,
            Err(AppendError::Full { .. }) => {
                writer.trim(writer.progress().synced);
                writer.request_sync(writer.progress().next);
                if writer.progress().appended == seen {
                    watch.wait_for(|progress| progress.appended > seen);
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn appends(writer: &Writer, watch: &Watch, bytes: usize, count: u64, each: Option<u64>) -> f64 {
    let body = Bytes::from(vec![5; bytes]);
    let start = Instant::now();
    let mut end = Lsn::ZERO;
    for number in 0..count {
        end = append(writer, watch, &body);
        if each.is_some_and(|each| number % each == 0) {
            writer.request_sync(end);
        }
        if number % 4096 == 0 {
            writer.trim(writer.progress().synced);
        }
    }
    writer.request_sync(end);
    watch.wait_for(|progress| progress.synced >= end);
    count as f64 / start.elapsed().as_secs_f64()
}

fn synced_by_threads(writer: &Writer, watch: &Watch, threads: u64, count: u64) -> f64 {
    let body = Bytes::from(vec![5; 4096]);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..count / threads {
                    let end = append(writer, watch, &body);
                    writer.request_sync(end);
                    watch.wait_for(|progress| progress.synced >= end);
                }
            });
        }
    });
    count as f64 / start.elapsed().as_secs_f64()
}
