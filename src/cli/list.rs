//! `s3bd list`: the volumes of a bucket.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use futures::stream::{StreamExt, TryStreamExt};

use super::{say, secret::SecretArgs, size::show_size, target::StoreArgs, tell};
use crate::{
    seal::slot::Secret,
    store::{Store, location::Backend, open::open_bucket},
    volume::{
        format_time,
        info::Info,
        list::{Depth, Found, Listed, Standing, find_volumes, look},
    },
};

/// Volumes looked at at once. Each wants a handful of requests, one after the other, and a password some 64 MiB.
const LOOKS_MAX: usize = 4;

/// List the volumes of a bucket.
///
/// Of a volume with a password, only what everybody may know is shown, unless the secret that is given here opens it.
/// Nobody is asked for one.
#[derive(Debug, Args)]
pub(super) struct List {
    /// BUCKET, or file:DIR.
    #[arg(value_name = "BUCKET")]
    place: Backend,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    secret: SecretArgs,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let name = self.place.to_string();
        let secret = self.secret.find().await?;
        let bucket = open_bucket(&self.place, &self.store.options()).await.with_context(|| name.clone())?;
        let depth = match self.place {
            Backend::Bucket(_) => Depth::Any,
            Backend::Directory(_) => Depth::One,
        };
        let found = find_volumes(&*bucket, depth).await.with_context(|| name.clone())?;
        let looks = found.iter().map(|found| look_named(&bucket, &name, found, secret.as_ref()));
        let volumes: Vec<Listed> = futures::stream::iter(looks).buffered(LOOKS_MAX).try_collect().await?;
        if self.json {
            say(serde_json::to_string_pretty(&volumes)?);
        } else if volumes.is_empty() {
            tell(format_args!("{name}: no volumes"));
        } else {
            print(&volumes);
        }
        Ok(())
    }
}

async fn look_named(
    bucket: &Arc<dyn Store>,
    name: &str,
    found: &Found,
    secret: Option<&Secret>,
) -> anyhow::Result<Listed> {
    look(bucket, found, secret).await.with_context(|| format!("{name}/{}", found.volume))
}

const HEAD: [&str; 8] = ["VOLUME", "SIZE", "USED", "BLOCK", "PASSWORD", "MADE", "ID", "STATE"];

fn print(volumes: &[Listed]) {
    let head = HEAD.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(volumes.iter().flat_map(rows)).collect();
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in &rows {
        let padded: String =
            row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}  ")).collect();
        say(padded.trim_end());
    }
}

/// The volume, and its snapshots below it.
fn rows(listed: &Listed) -> Vec<[String; HEAD.len()]> {
    let unknown = || "-".to_owned();
    let (info, state) = state(&listed.standing);
    let of_info = |show: fn(&Info) -> String| info.map_or_else(unknown, show);
    let facts = listed.header.as_ref();
    let mut rows = vec![[
        listed.volume.clone(),
        of_info(|info| show_size(info.size_bytes)),
        of_info(|info| show_size(info.used_bytes)),
        facts.map_or_else(unknown, |facts| show_size(facts.block_bytes.into())),
        facts.map_or_else(unknown, |facts| if facts.protected { "yes" } else { "no" }.to_owned()),
        facts.map_or_else(unknown, |facts| format_time(facts.created_ms)),
        facts.map_or_else(unknown, |facts| facts.id.clone()),
        state
            + &info
                .and_then(|info| info.clone_of.as_ref())
                .map_or(String::new(), |parent| format!(", clone of {parent}")),
    ]];
    for snapshot in info.iter().flat_map(|info| &info.snapshots) {
        let mut row: [String; HEAD.len()] = Default::default();
        row[0] = format!("  @{}", snapshot.name);
        row[1] = show_size(snapshot.size_bytes);
        row[5] = format_time(snapshot.time_ms);
        if !snapshot.clones.is_empty() {
            row[7] = format!("cloned as {}", snapshot.clones.join(", "));
        }
        rows.push(row);
    }
    rows
}

fn state(standing: &Standing) -> (Option<&Info>, String) {
    match standing {
        Standing::Closed { info } => (Some(info), "closed".to_owned()),
        Standing::Open { info } => {
            let by = info.open.as_ref().and_then(|open| open.by.as_ref());
            let by = by.map_or("another host".to_owned(), |by| format!("{} (process {})", by.host, by.pid));
            (Some(info), format!("open by {by}, or not closed by it"))
        }
        Standing::Locked => (None, "locked".to_owned()),
        Standing::Unfinished => {
            (None, "unfinished: being made or removed, or that was interrupted".to_owned())
        }
        Standing::Damaged { problem } => (None, format!("damaged: {problem}")),
    }
}
