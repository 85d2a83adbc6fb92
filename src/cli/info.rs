//! `s3bd info`: what a volume is, from its bucket alone.

use anyhow::Context;
use clap::Args;

use super::{say, secret::SecretArgs, size::show_size, target::Target};
use crate::volume::{
    format_time,
    info::{Info as Facts, info},
};

/// Say what a volume is.
#[derive(Debug, Args)]
pub(super) struct Info {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (outside, bucket) = self.target.unlock(&self.secret).await?;
        self.target.warn_of_older(&outside.env, &bucket).await;
        let facts = info(&bucket).await.with_context(|| self.target.name())?;
        if self.json {
            say(serde_json::to_string_pretty(&facts)?);
        } else {
            print(&self.target.name(), &facts);
        }
        Ok(())
    }
}

fn print(name: &str, facts: &Facts) {
    let exact = |bytes: u64| format!("{} ({bytes} bytes)", show_size(bytes));
    let line = |label: &str, text: String| say(format_args!("{label:<13}{text}"));
    line("volume", format!("{name}, id {}", facts.volume));
    line("size", exact(facts.size_bytes));
    line("used", exact(facts.used_bytes));
    line("stored", format!("{} in {} objects", exact(facts.stored_bytes), facts.objects));
    line("block size", format!("{} bytes", facts.block_bytes));
    line(
        "password",
        match (facts.protected, facts.key_slots) {
            (false, _) => "no".to_owned(),
            (true, 1) => "yes, 1 key slot".to_owned(),
            (true, slots) => format!("yes, {slots} key slots"),
        },
    );
    line("made", format_time(facts.created_ms));
    line(
        "epoch",
        format!(
            "{} of generation {}, published {} by {} (process {}, s3bd {})",
            facts.epoch,
            facts.generation,
            format_time(facts.published_ms),
            facts.published_by.host,
            facts.published_by.pid,
            facts.published_by.version
        ),
    );
    line("state", state(facts));
    if let Some(parent) = &facts.clone_of {
        line("clone of", parent.clone());
    }
    for snapshot in facts.snapshots.iter().take(SNAPSHOTS_MAX) {
        line(
            "snapshot",
            format!("{}, epoch {}, taken {}", snapshot.name, snapshot.epoch, format_time(snapshot.time_ms)),
        );
    }
    if let Some(more @ 1..) = facts.snapshots.len().checked_sub(SNAPSHOTS_MAX) {
        line("", format!("and {more} more: s3bd snapshot list {name}"));
    }
}

/// Snapshots shown; s3bd snapshot list shows all.
const SNAPSHOTS_MAX: usize = 10;

fn state(facts: &Facts) -> String {
    let Some(open) = &facts.open else { return "closed".to_owned() };
    let by = match &open.by {
        Some(by) => format!("{} (process {})", by.host, by.pid),
        None => "a host whose claim cannot be read".to_owned(),
    };
    let since = open.since_ms.map_or("an unknown time".to_owned(), format_time);
    let lag = match facts.unpublished_bytes {
        0 => String::new(),
        bytes => format!(", with {} not uploaded when that epoch was published", show_size(bytes)),
    };
    format!("open by {by} since {since}, or not closed by it{lag}")
}
