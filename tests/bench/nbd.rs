//! Ratios of s3bd against `nbdkit file` and `qemu-nbd`, run beside it on the same disk, driven by fio's nbd engine.
//!
//! `cargo bench --bench nbd [-- [OPTIONS] [CASE]…]`. fio, nbdkit and qemu-nbd have to be installed.
//!
//! # What is compared
//! s3bd serves a `file:` volume, the others a raw file that was written once, each over a Unix socket, all in one
//! folder. Every case runs the servers in turn, round after round, and says the median and range of each, and
//! ratios of medians: the machine's speed cancels out, and what else it is doing mostly does. The servers that are
//! not measured are stopped meanwhile: what s3bd puts off it pays for in its own next round, not in a rival's.
//! - Reads are warm. `s3bd` has unpacked the whole volume into memory. `s3bd-disk` has no memory to speak of, and opens
//!   each frame from its cache on disk. The others read from the page cache.
//! - Writes go on for less than s3bd's log is long, and a case begins when all before it is uploaded. Data is what fio
//!   makes: it cannot be compressed.
//!
//! Nothing is asserted.

#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

#[derive(Debug, Parser)]
#[command(name = "nbd")]
struct Options {
    /// Cases to run [default: all].
    cases: Vec<String>,
    /// Size of the disks, MiB.
    #[arg(long, default_value = "256")]
    size_mib: u64,
    /// Time of one run, milliseconds.
    #[arg(long, default_value = "1200")]
    runtime_ms: u64,
    /// Runs of each server in each case.
    #[arg(long, default_value = "3")]
    rounds: usize,
    /// Leave servers out (s3bd-disk, nbdkit, qemu-nbd), separated by commas.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the disks are [default: below the target directory].
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// More options for `s3bd open`, separated by spaces.
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true, default_value = "")]
    open: String,
    /// The s3bd to measure.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_s3bd"))]
    s3bd: PathBuf,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What fio does.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    rw: &'static str,
    block_bytes: u64,
    depth: u32,
    /// A flush after each write.
    flush: bool,
}

impl Case {
    const fn new(name: &'static str, rw: &'static str, block_bytes: u64, depth: u32) -> Self {
        Self { name, rw, block_bytes, depth, flush: false }
    }

    fn reads(&self) -> bool {
        self.rw.ends_with("read")
    }

    /// Of operations a second.
    fn show(&self, rate: f64) -> String {
        if self.block_bytes >= 1 << 20 {
            return format!("{:.0} MiB/s", rate * (self.block_bytes >> 20) as f64);
        }
        format!("{:.1} k/s", rate / 1000.0)
    }
}

const CASES: [Case; 9] = [
    Case::new("seq-read-1", "read", 1 << 20, 1),
    Case::new("seq-read-16", "read", 1 << 20, 16),
    Case::new("rand-read-1", "randread", 4096, 1),
    Case::new("rand-read-32", "randread", 4096, 32),
    Case::new("seq-write-1", "write", 1 << 20, 1),
    Case::new("seq-write-16", "write", 1 << 20, 16),
    Case::new("rand-write-1", "randwrite", 4096, 1),
    Case::new("rand-write-32", "randwrite", 4096, 32),
    Case { flush: true, ..Case::new("rand-write-flush", "randwrite", 4096, 1) },
];

/// Writes the whole disk once.
const FILL: Case = Case { flush: false, ..Case::new("fill", "write", 1 << 20, 16) };
/// Reads it once.
const WARM: Case = Case::new("warm", "read", 1 << 20, 4);

/// A server, running or to be run.
#[derive(Debug)]
struct Server {
    name: &'static str,
    command: Vec<String>,
    uri: String,
    socket: PathBuf,
    /// What it writes to.
    folder: PathBuf,
    child: Option<Child>,
}

impl Server {
    fn new(name: &'static str, export: &str, folder: &Path, command: Vec<String>) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let socket = folder.join("socket");
        let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
        let folder = folder.to_owned();
        Ok(Self { name, command, uri, socket, folder, child: None })
    }

    /// Starts it and waits until it listens.
    fn start(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).stdin(Stdio::null());
        let s3bd = self.name.starts_with("s3bd");
        command.stdout(if s3bd { Stdio::piped() } else { Stdio::null() });
        let mut child =
            command.spawn().with_context(|| format!("{} has to be installed", self.command[0]))?;
        if let Some(printed) = child.stdout.take() {
            // It listens at once, and says so when the volume is open.
            for line in BufReader::new(printed).lines() {
                if line?.contains("served at") {
                    self.child = Some(child);
                    return Ok(());
                }
            }
            bail!("{} does not serve: {}", self.name, child.wait()?);
        }
        for _ in 0..1000 {
            if self.socket.exists() {
                self.child = Some(child);
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                bail!("{} does not serve: {status}", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("{} does not listen", self.name)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let Some(child) = &self.child else { return Ok(()) };
        let pid = Pid::from_raw(child.id().cast_signed()).context("a process has a number")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Ends it as its user would; s3bd has uploaded everything then.
    fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)?;
        self.signal(Signal::TERM)?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let status = child.wait()?;
        ensure!(!self.name.starts_with("s3bd") || status.success(), "{} ended: {status}", self.name);
        Ok(())
    }

    /// Runs fio against it, the only one that runs; operations a second.
    fn run(&self, case: &Case, size_mib: u64, limit: &[String]) -> anyhow::Result<f64> {
        self.signal(Signal::CONT)?;
        let rate = fio(&self.uri, case, size_mib, limit, &self.folder.join("fio.json"));
        self.signal(Signal::STOP)?;
        if !case.reads() {
            // What it left in the page cache is not written during the next run.
            sync_all(&self.folder)?;
        }
        rate.with_context(|| format!("{} with {}", case.name, self.name))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Every server on its own disk below `folder`.
fn servers(options: &Options, folder: &Path) -> anyhow::Result<Vec<Server>> {
    let s3bd = |name: &str, more: &[&str]| -> Vec<String> {
        let own = folder.join(name);
        let mut command = vec![
            options.s3bd.display().to_string(),
            "open".to_owned(),
            format!("file:{}/volume", folder.join("s3bd/store").display()),
            "--no-password".to_owned(),
            format!("--unix={}", own.join("socket").display()),
            format!("--state-dir={}", own.join("state").display()),
        ];
        command.extend(more.iter().map(|word| (*word).to_owned()));
        command.extend(options.open.split_whitespace().map(str::to_owned));
        command
    };
    let peer = |name: &str, words: &[&str]| -> Vec<String> {
        let own = folder.join(name);
        let place = |word: &&str| match *word {
            "SOCKET" => own.join("socket").display().to_string(),
            "DISK" => own.join("disk").display().to_string(),
            word => word.to_owned(),
        };
        words.iter().map(place).collect()
    };
    let size_mib = options.size_mib;
    fs::create_dir_all(folder.join("s3bd/store"))?;
    let create = format!("--create={size_mib}M");
    let memory = format!("--memory-size={}M", (2 * size_mib).max(256));
    let all = [
        ("s3bd", "volume", s3bd("s3bd", &[&create, &memory])),
        ("s3bd-disk", "volume", s3bd("s3bd-disk", &["--read-only", "--memory-size=16M"])),
        ("nbdkit", "", peer("nbdkit", &["nbdkit", "-f", "-U", "SOCKET", "file", "DISK"])),
        ("qemu-nbd", "", peer("qemu-nbd", &["qemu-nbd", "-f", "raw", "-t", "-e16", "-k", "SOCKET", "DISK"])),
    ];
    let mut servers = Vec::new();
    for (name, export, command) in all {
        if options.without.iter().any(|without| without == name) {
            continue;
        }
        let server = Server::new(name, export, &folder.join(name), command)?;
        if !name.starts_with("s3bd") {
            let disk = File::create(server.folder.join("disk"))?;
            rustix::fs::fallocate(&disk, rustix::fs::FallocateFlags::empty(), 0, size_mib << 20)?;
        }
        servers.push(server);
    }
    Ok(servers)
}

/// Operations a second.
fn fio(uri: &str, case: &Case, size_mib: u64, limit: &[String], output: &Path) -> anyhow::Result<f64> {
    let mut command = Command::new("fio");
    command
        .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--norandommap"])
        .args([format!("--uri={uri}"), format!("--rw={}", case.rw), format!("--bs={}", case.block_bytes)])
        .args([format!("--iodepth={}", case.depth), format!("--size={size_mib}M")])
        .arg(format!("--output={}", output.display()))
        .args(limit)
        .current_dir(output.parent().context("a folder")?);
    if case.flush {
        command.arg("--fsync=1");
    }
    let done = command.output().context("fio has to be installed")?;
    let errors = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "fio: {}: {errors}", done.status);
    let report: Value = serde_json::from_slice(&fs::read(output)?).context("fio's report")?;
    let way = if case.reads() { "read" } else { "write" };
    report["jobs"][0][way]["iops"].as_f64().context("fio's report has no rate")
}

fn sync_all(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match File::open(entry.path()) {
            Ok(_) if entry.file_type()?.is_dir() => sync_all(&entry.path())?,
            Ok(file) if entry.file_type()?.is_file() => file.sync_all()?,
            // Sockets cannot be opened, and a file may be gone.
            _ => {}
        }
    }
    Ok(())
}

/// Rates of one server in one case.
struct Rates {
    server: &'static str,
    rates: Vec<f64>,
}

impl Rates {
    fn median(&self) -> f64 {
        let mut sorted = self.rates.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = sorted.len() / 2;
        (sorted[(sorted.len() - 1) / 2] + sorted[upper]) / 2.0
    }

    fn range(&self) -> (f64, f64) {
        self.rates.iter().fold((f64::MAX, 0.0), |(low, high), rate| (rate.min(low), rate.max(high)))
    }
}

/// Runs the case on each server in turn, `rounds` times.
fn measure(case: &Case, servers: &[&Server], options: &Options) -> anyhow::Result<Vec<Rates>> {
    let mut all: Vec<Rates> =
        servers.iter().map(|server| Rates { server: server.name, rates: Vec::new() }).collect();
    for round in 0..options.rounds {
        let runtime = format!("--runtime={}ms", options.runtime_ms);
        let limit = ["--time_based".to_owned(), runtime, format!("--randseed={}", round + 1)];
        for (server, rates) in servers.iter().zip(&mut all) {
            rates.rates.push(server.run(case, options.size_mib, &limit)?);
        }
    }
    Ok(all)
}

/// Prints a case, and returns it for the file.
fn report(case: &Case, all: &[Rates]) -> Value {
    println!("{} (load {})", case.name, load());
    let median = |name: &str| all.iter().find(|rates| rates.server == name).map(Rates::median);
    let mut found = serde_json::Map::new();
    for rates in all {
        let (low, high) = rates.range();
        let mut line = format!(
            "  {:<10} {:>12}  {:<26}",
            rates.server,
            case.show(rates.median()),
            format!("({} to {})", case.show(low), case.show(high)),
        );
        let mut ratios = serde_json::Map::new();
        for peer in ["nbdkit", "qemu-nbd"] {
            if let Some(of) = median(peer).filter(|_| rates.server.starts_with("s3bd")) {
                let ratio = rates.median() / of;
                line += &format!("  {ratio:.2} of {peer}");
                ratios.insert(peer.to_owned(), json!(ratio));
            }
        }
        println!("{}", line.trim_end());
        let entry = json!({ "median": rates.median(), "rates": rates.rates, "of": ratios });
        found.insert(rates.server.to_owned(), entry);
    }
    json!({ "case": case.name, "load": load(), "operations_a_second": found })
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn choose(options: &Options) -> anyhow::Result<Vec<Case>> {
    let known = |name: &String| {
        let names = || CASES.map(|case| case.name).join(", ");
        CASES
            .iter()
            .find(|case| case.name == name)
            .copied()
            .with_context(|| format!("there is no case {name}; there are {}", names()))
    };
    if options.cases.is_empty() { Ok(CASES.to_vec()) } else { options.cases.iter().map(known).collect() }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let (reads, writes): (Vec<Case>, Vec<Case>) = choose(&options)?.into_iter().partition(Case::reads);
    ensure!(options.rounds > 0, "no rounds, no figures");
    fs::create_dir_all(&options.dir)?;
    let folder = tempfile::tempdir_in(&options.dir)?;
    let mut servers = servers(&options, folder.path())?;
    println!(
        "disks of {} MiB, {} rounds of {} ms, load {}",
        options.size_mib,
        options.rounds,
        options.runtime_ms,
        load()
    );
    for server in servers.iter_mut().filter(|server| server.name != "s3bd-disk") {
        server.start()?;
        server.run(&FILL, options.size_mib, &[])?;
    }
    let mut cases = Vec::new();
    let s3bd = servers.iter().position(|server| server.name == "s3bd").context("s3bd is always measured")?;
    servers[s3bd].stop()?;
    servers[s3bd].start()?;
    if !reads.is_empty() {
        for server in &mut servers {
            if server.name == "s3bd-disk" {
                server.start()?;
            }
            server.run(&WARM, options.size_mib, &[])?;
        }
        let all: Vec<&Server> = servers.iter().collect();
        for case in &reads {
            cases.push(report(case, &measure(case, &all, &options)?));
        }
    }
    servers.retain(|server| server.name != "s3bd-disk");
    for case in &writes {
        let all: Vec<&Server> = servers.iter().collect();
        cases.push(report(case, &measure(case, &all, &options)?));
        servers[s3bd].stop()?;
        servers[s3bd].start()?;
    }
    if let Some(path) = &options.json {
        let run = json!({
            "size_mib": options.size_mib,
            "rounds": options.rounds,
            "runtime_ms": options.runtime_ms,
            "cases": cases,
        });
        fs::write(path, serde_json::to_vec_pretty(&run)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
