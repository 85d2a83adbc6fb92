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
/// Odd, for a median.
const ROUNDS: usize = 9;

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
    let options = Options { segment_bytes: SEGMENT_BYTES, log_bytes_max: LOG_BYTES_MAX, tag: [7; 32] };
    let (log, _) = Log::open(Arc::clone(&disk), options.clone(), None)?;
    let watch = Arc::new(Watch::default());
    let told = Arc::clone(&watch);
    let on_progress = Box::new(move |progress: &Progress| {
        *told.progress.lock().unwrap() = progress.clone();
        told.changed.notify_all();
    });
    let writer = Writer::start(log, Box::new(PlainSeal), on_progress, Mode::Thread);
    let log = Bench { writer: &writer, watch: &watch, disk: &*disk };
    for bytes in [512, 4096, 65536, 1 << 20] {
        let count = (64 << 20) / bytes.max(1024) as u64;
        let what = format!("{bytes} bytes, one sync at the end");
        log.compare(&what, bytes, count, 1, None)?;
    }
    log.compare("4096, each 64th asks (plain waits)", 4096, 6400, 1, Some(64))?;
    log.compare("4096 bytes, each waits for its sync", 4096, 100, 1, Some(1))?;
    log.compare("the same, 32 threads beside 1 plain", 4096, 320, 32, Some(1))?;
    writer.close()?;
    reopen(disk, options, writer.progress().trimmed)
}

struct Bench<'b> {
    writer: &'b Writer,
    watch: &'b Watch,
    disk: &'b dyn Disk,
}

impl Bench<'_> {
    /// Runs the log and plain writes by turns, so that whatever else the disk does hits both; prints both rates and the median ratio.
    fn compare(
        &self,
        what: &str,
        bytes: usize,
        count: u64,
        threads: u64,
        each: Option<u64>,
    ) -> std::io::Result<()> {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let plain = self.plain(bytes, count, each)?;
            let log = self.log(bytes, count, threads, each);
            rounds.push((log / plain, log, plain));
        }
        rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, log, plain) = rounds[ROUNDS / 2];
        let (least, most) = (rounds[0].0, rounds[ROUNDS - 1].0);
        let mib = log * bytes as f64 / f64::from(1 << 20);
        println!(
            "{what:36} log {log:9.0}/s {mib:7.1} MiB/s, plain {plain:9.0}/s, ratio {ratio:.2} ({least:.2} to {most:.2})"
        );
        Ok(())
    }

    /// Writes to one allocated file, synced at the end and after `each` so many; writes per second.
    fn plain(&self, bytes: usize, count: u64, each: Option<u64>) -> std::io::Result<f64> {
        let file = self.disk.create("plain", bytes as u64 * count)?;
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
        self.disk.remove("plain")?;
        Ok(rate)
    }

    /// The same through the log; with `each` 1 every append waits for its sync.
    fn log(&self, bytes: usize, count: u64, threads: u64, each: Option<u64>) -> f64 {
        let body = Bytes::from(vec![5; bytes]);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| self.appends(&body, count / threads, each));
            }
        });
        let rate = count as f64 / start.elapsed().as_secs_f64();
        self.writer.trim(self.writer.progress().synced);
        rate
    }

    fn appends(&self, body: &Bytes, count: u64, each: Option<u64>) {
        let mut end = Lsn::ZERO;
        for number in 0..count {
            end = self.append(body);
            if each.is_some_and(|each| number % each == 0) {
                self.writer.request_sync(end);
            }
            if each == Some(1) {
                self.watch.wait_for(|progress| progress.synced >= end);
            }
        }
        self.writer.request_sync(end);
        self.watch.wait_for(|progress| progress.synced >= end);
    }

    fn append(&self, body: &Bytes) -> Lsn {
        loop {
            let seen = self.watch.progress.lock().unwrap().appended;
            match self.writer.append(1, &[0; 24], body.clone()) {
                Ok(appended) => return appended.end,
                // The queue is full: there is room for all of a round in the log.
                Err(AppendError::Full { .. }) => {
                    let next = self.writer.progress().next;
                    self.watch.wait_for(|progress| progress.appended > seen || progress.appended == next);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Opens what was closed, and replays it.
fn reopen(disk: Arc<dyn Disk>, options: Options, floor: Lsn) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let (log, scan) = Log::open(disk, options, Some(floor))?;
    let opened = start.elapsed();
    let records = log.records(floor).count();
    let replayed = start.elapsed() - opened;
    let mib = scan.bytes >> 20;
    println!("open: {mib} MiB scanned in {opened:.1?}; {records} records replayed in {replayed:.1?}");
    Ok(())
}
