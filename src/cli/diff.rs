//! `s3bd diff`: which ranges changed between two snapshots, or since one.

use std::io::{BufWriter, Write};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{secret::SecretArgs, size::show_size, target::Target, tell};
use crate::{
    format::{ids::Epoch, manifest::Manifest, names},
    store::location::check_snapshot_name,
    volume::{
        bucket::Bucket,
        diff::{Changed, Now, Ranges, TwoEpochs},
        error::VolumeError,
        snapshots::SnapshotTable,
        walk::Direct,
    },
};

/// Say which ranges of a volume changed between two snapshots, or from a snapshot to the newest epoch in the bucket.
///
/// Told from the maps alone, so it costs requests by what changed and not by the volume's size. A range that is not
/// printed is the same in both. One that is printed may be the same all the same: it was written again, or moved to free
/// space. Each line has the first byte, the number of bytes, and what is there in the later one: data, zero, or lost.
#[derive(Debug, Args)]
pub(super) struct Diff {
    #[command(flatten)]
    target: Target,
    /// The later one; without it, the newest epoch in the bucket.
    #[arg(value_name = "@SNAPSHOT", value_parser = parse_snapshot)]
    to: Option<String>,
    #[command(flatten)]
    secret: SecretArgs,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

fn parse_snapshot(text: &str) -> Result<String, String> {
    let name = text.strip_prefix('@').ok_or("write @NAME, a snapshot of the same volume")?;
    check_snapshot_name(name).map(|()| name.to_owned()).map_err(|problem| format!("{name:?} {problem}"))
}

/// One of the two, as JSON has it.
#[derive(Serialize)]
struct Side {
    snapshot: Option<String>,
    epoch: Epoch,
    time_ms: u64,
    size_bytes: u64,
}

impl Side {
    fn new(snapshot: Option<&str>, manifest: &Manifest) -> Self {
        let Manifest { epoch, time_ms, size_bytes, .. } = *manifest;
        Self { snapshot: snapshot.map(str::to_owned), epoch, time_ms, size_bytes }
    }

    fn name(&self) -> String {
        self.snapshot.as_ref().map_or(format!("epoch {}", self.epoch), |name| format!("@{name}"))
    }
}

impl Diff {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (target, from) = self.target.split_snapshot()?;
        let name = target.name();
        let (_, bucket) = target.unlock(&self.secret).await?;
        self.compare(&bucket, &name, &from).await.with_context(|| name)
    }

    async fn compare(&self, bucket: &Bucket, name: &str, from: &str) -> anyhow::Result<()> {
        let newest = bucket.newest_manifest().await?.manifest;
        let table = SnapshotTable::load(bucket, &newest).await?;
        let before = pinned(bucket, &table, from).await?;
        let after = match &self.to {
            Some(to) => pinned(bucket, &table, to).await?,
            None => newest,
        };
        let sides = [Side::new(Some(from), &before), Side::new(self.to.as_deref(), &after)];
        let epochs = TwoEpochs::load(bucket, &before, &after).await?;
        let direct = Direct::new(bucket.clone());
        let mut ranges = epochs.ranges(&direct);
        let mut out = BufWriter::new(std::io::stdout());
        let written = match self.json {
            true => write_json(&mut out, name, &sides, &mut ranges).await,
            false => write_lines(&mut out, &mut ranges).await,
        };
        match written.and_then(|total| Ok((total, out.flush()?))) {
            Ok(((count, bytes), ())) => {
                let [from, to] = sides.map(|side| side.name());
                let bytes = show_size(bytes);
                tell(format_args!("{name}: {bytes} in {count} ranges differ between {from} and {to}"));
                Ok(())
            }
            // A reader that went away has seen enough.
            Err(error) if is_broken_pipe(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

async fn pinned(bucket: &Bucket, table: &SnapshotTable, name: &str) -> Result<Manifest, VolumeError> {
    let snapshot = table.get(name)?;
    let pinned = bucket.load_manifest(snapshot.generation, snapshot.epoch).await?;
    let missing = || VolumeError::NoManifest {
        detail: format!(
            "{}, which the snapshot {name:?} pins, is missing",
            names::manifest(snapshot.generation, snapshot.epoch)
        ),
    };
    Ok(pinned.ok_or_else(missing)?.manifest)
}

/// Ranges and bytes written.
type Total = (u64, u64);

async fn write_lines(out: &mut impl Write, ranges: &mut Ranges<'_>) -> anyhow::Result<Total> {
    let mut total = (0, 0);
    while let Some(Changed { offset, length, now }) = ranges.next().await? {
        let now = match now {
            Now::Data => "data",
            Now::Zero => "zero",
            Now::Lost => "lost",
        };
        writeln!(out, "{offset} {length} {now}")?;
        total = (total.0 + 1, total.1 + length);
    }
    Ok(total)
}

/// One object, whose ranges are written as they are found: there may be millions.
async fn write_json(
    out: &mut impl Write,
    name: &str,
    [from, to]: &[Side; 2],
    ranges: &mut Ranges<'_>,
) -> anyhow::Result<Total> {
    let mut total = (0, 0);
    let [name, from, to] =
        [serde_json::to_string(name)?, serde_json::to_string(from)?, serde_json::to_string(to)?];
    write!(out, "{{\n  \"volume\": {name},\n  \"from\": {from},\n  \"to\": {to},\n")?;
    write!(out, "  \"ranges\": [")?;
    while let Some(changed) = ranges.next().await? {
        let comma = if total.0 == 0 { "" } else { "," };
        write!(out, "{comma}\n    {}", serde_json::to_string(&changed)?)?;
        total = (total.0 + 1, total.1 + changed.length);
    }
    writeln!(out, "\n  ],\n  \"changed_bytes\": {}\n}}", total.1)?;
    Ok(total)
}
