//! The command line: one file a command; the only place that prints.
//!
//! Results go to standard output, everything else to standard error. An error is one line, `s3bd: …`, and an exit code
//! that says what to do about it ([`exit`]).

mod clone;
mod confirm;
mod diff;
mod exit;
mod exports;
mod flatten;
mod fsck;
mod gc;
mod info;
mod init;
mod key;
mod list;
mod new_secret;
mod open;
mod perform;
mod progress;
mod rebuilt;
mod recover;
mod remove;
mod repair;
mod resize;
mod rollback;
mod secret;
mod serve;
mod served;
mod size;
mod snapshot;
mod status;
mod sync;
mod target;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A disk in an S3 bucket: served over NBD, written through a local log, sealed and compressed.
#[derive(Debug, Parser)]
#[command(name = "s3bd", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more (twice: everything); S3BD_LOG takes filters such as s3bd=debug.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

const AFTER_HELP: &str = "\
A volume is BUCKET/VOLUME (or s3://BUCKET/VOLUME), or file:DIR/VOLUME for a directory instead of a bucket. Credentials, \
region and profile are found as the AWS tools find them; --endpoint names another S3 server.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such volume or bucket, 4 wrong or missing password, 5 in use \
(another process, another host, a taken port), 6 the store cannot be reached or refuses, 7 damaged data, 8 the local log \
and the bucket went different ways, 9 not open on this host. fsck has those of fsck(8).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a volume.
    Init(init::Init),
    /// Serve a volume over NBD, until SIGINT or SIGTERM; then everything is uploaded and the volume closed.
    Open(Box<open::Open>),
    /// After a crash or a loss: upload what the local log holds, fall back to what is whole, and close the volume.
    Recover(recover::Recover),
    /// Check a volume in its bucket, also while it is open elsewhere; changes nothing but with --repair.
    Fsck(fsck::Fsck),
    /// Say what a volume is, from its bucket alone.
    Info(info::Info),
    /// List the volumes of a bucket.
    List(list::List),
    /// Say which ranges of a volume changed between two snapshots, or since one, from its maps alone.
    Diff(diff::Diff),
    /// Go back to a snapshot, while the volume is not open; what was written since is kept as another snapshot.
    Rollback(rollback::Rollback),
    /// Remove a volume, with its snapshots, from its bucket and this host.
    Remove(remove::Remove),
    /// List, add, remove and change the secrets that open a volume.
    #[command(subcommand)]
    Key(key::Key),
    /// Make a volume larger or smaller, also while it is open and in use on this host.
    Resize(resize::Resize),
    /// Take, list, delete and rename snapshots of a volume.
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Make a writable volume of a snapshot, which shares its blocks, or with --full a copy.
    Clone(Box<clone::Clone>),
    /// Make a clone independent: copy what it shares with its origin, also while it is open and in use on this host.
    Flatten(flatten::Flatten),
    /// Say how the open server of a volume on this host does, and how far behind its bucket is.
    Status(status::Status),
    /// Delete what nobody needs, and move what is left of sparse objects.
    Gc(gc::Gc),
    /// Wait until everything that the open server on this host has acknowledged is in the bucket.
    Sync(sync::Sync),
}

/// Runs the program on its command line.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let usage = if std::env::args_os().nth(1).is_some_and(|word| word == "fsck") {
                fsck::USAGE
            } else {
                exit::USAGE
            };
            return ExitCode::from(if error.use_stderr() { usage } else { exit::DONE });
        }
    };
    start_log(cli.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&anyhow::Error::new(error).context("cannot start threads")),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Init(command) => command.run().await,
            Command::Open(command) => command.run().await,
            Command::Recover(command) => command.run().await,
            Command::Fsck(command) => return command.run().await,
            Command::Info(command) => command.run().await,
            Command::List(command) => command.run().await,
            Command::Diff(command) => command.run().await,
            Command::Rollback(command) => command.run().await,
            Command::Remove(command) => command.run().await,
            Command::Key(command) => command.run().await,
            Command::Resize(command) => command.run().await,
            Command::Snapshot(command) => command.run().await,
            Command::Clone(command) => command.run().await,
            Command::Flatten(command) => command.run().await,
            Command::Status(command) => command.run().await,
            Command::Gc(command) => command.run().await,
            Command::Sync(command) => command.run().await,
        }
        .map(|()| exit::DONE)
    });
    // What still runs in threads (a read of a store that is away) must not hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => exit::report(&error),
    }
}

fn start_log(verbose: u8) {
    let default = match verbose {
        0 => "s3bd=warn",
        1 => "s3bd=info",
        _ => "s3bd=debug",
    };
    let filter = std::env::var("S3BD_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| default.into());
    use std::io::IsTerminal;
    let _ = tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
}

/// Prints a line to standard output. A reader that went away is no error (`s3bd info … | head -1`).
fn say(line: impl std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Prints a line to standard error.
fn tell(line: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "s3bd: {line}");
}
