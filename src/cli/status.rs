//! `s3bd status`: how the open server of a volume on this host does.

use std::{io::IsTerminal, time::Duration};

use anyhow::Context;
use clap::Args;

use super::{
    say,
    size::{show_size, show_span},
    target::Target,
};
use crate::{
    control::{Answer, Request, Status as Facts},
    store::metered::CallTotals,
    volume::{
        format_time,
        status::{Condition, GarbageStatus, LastError, VolumeStatus},
    },
};

/// Time between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Say how the open server of a volume on this host does. Asks the server alone: no store, no password.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    target: Target,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
    /// Print it again every two seconds, until interrupted or until the server ends; with --json a line each time.
    #[arg(long)]
    watch: bool,
}

const OTHERWISE: &str = "s3bd info says what is in its bucket, and which host has it open";

impl Status {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let mut server = self.target.server(OTHERWISE).await?;
        loop {
            let answer = server.ask(&Request::Status, |_| ()).await.with_context(|| name.clone())?;
            let Answer::Status(facts) = answer else {
                anyhow::bail!("{name}: the server answered something else: {answer:?}");
            };
            if self.json && self.watch {
                say(serde_json::to_string(&facts)?);
            } else if self.json {
                say(serde_json::to_string_pretty(&facts)?);
            } else {
                if self.watch && std::io::stdout().is_terminal() {
                    // ECMA-48: cursor to the first place, erase to the end.
                    say("\x1b[H\x1b[2J");
                }
                say(text(&name, &facts));
            }
            if !self.watch {
                return Ok(());
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}

/// All of it, a line each.
fn text(name: &str, facts: &Facts) -> String {
    let Facts { server, volume, store, clients, .. } = facts;
    let ago = |time_ms: u64| format!("{} ago", show_span(facts.time_ms.saturating_sub(time_ms)));
    let read_only = if volume.read_only { ", read-only" } else { "" };
    let mut lines = vec![
        ("volume", format!("{name}, id {}, {}{read_only}", volume.volume, show_size(volume.size_bytes))),
        (
            "server",
            format!(
                "process {}, s3bd {}, since {}",
                server.pid,
                server.program,
                format_time(server.since_ms)
            ),
        ),
        ("state", state(facts)),
        (
            "epoch",
            format!(
                "{} of generation {}, published {} ({})",
                volume.epoch,
                volume.generation,
                format_time(volume.published_ms),
                ago(volume.published_ms)
            ),
        ),
        ("behind", behind(facts)),
    ];
    if let Some(log) = &volume.log {
        let full = if log.disk_full { "; its disk is full, writes wait" } else { "" };
        lines.push(("log", format!("{} of {}{full}", show_size(log.used_bytes), show_size(log.bytes_max))));
    }
    lines.push(("cache", cache(volume)));
    if let Some(garbage) = &volume.garbage {
        lines.push(("garbage", describe(garbage)));
    }
    lines.push(("memory", memory(facts)));
    let client = |client: &crate::nbd::Client| match client.address {
        Some(address) => format!("{address} ({})", client.export),
        None => {
            let program = client.program.as_ref().map_or(String::new(), |name| format!("{name} by "));
            format!("{program}unix ({})", client.export)
        }
    };
    let each = clients.iter().map(client).collect::<Vec<_>>().join(", ");
    let colon = if clients.is_empty() { "" } else { ": " };
    lines.push(("clients", format!("{}{colon}{each}", clients.len())));
    lines.push(("requests", requests(facts)));
    let store_error = store.last_failure.as_ref().map(|failure| LastError {
        error: failure.error.clone(),
        time_ms: facts.time_ms.saturating_sub(failure.ago_ms),
    });
    let newest = volume.last_error.clone().into_iter().chain(store_error).max_by_key(|error| error.time_ms);
    let last = newest.map_or("none".to_owned(), |last| format!("{} ({})", last.error, ago(last.time_ms)));
    lines.push(("last error", last));
    lines.iter().map(|(label, text)| format!("{label:<12}{text}")).collect::<Vec<_>>().join("\n")
}

fn state(facts: &Facts) -> String {
    let mut text = match &facts.volume.state {
        Condition::Serving => "serving".to_owned(),
        Condition::Closing => "closing: what is left is being uploaded".to_owned(),
        Condition::Closed => "closed".to_owned(),
        Condition::Fenced { since_ms, by_generation, by } => {
            let by = match by {
                Some(by) => format!(
                    "{} (process {}), which claimed the volume {}",
                    by.host,
                    by.pid,
                    format_time(by.claimed_ms)
                ),
                None => "another host".to_owned(),
            };
            format!(
                "fenced by generation {by_generation} of {by}; found out {}; every request is answered with an error, \
                 what was not published stays in the log",
                format_time(*since_ms)
            )
        }
        Condition::LogFailed { since_ms, error } => format!(
            "the log failed {}: {error}; writes are answered with an error, reads go on",
            format_time(*since_ms)
        ),
        Condition::Failed { since_ms, error } => {
            format!("failed {}: {error}; every request is answered with an error", format_time(*since_ms))
        }
    };
    if let Some(away_ms) = facts.store.away_ms {
        let since = format_time(facts.time_ms.saturating_sub(away_ms));
        let waiting = facts.store.calls_waiting;
        text += &format!(
            "; the store has been away for {} (since {since}), calls waiting: {waiting}",
            show_span(away_ms)
        );
    }
    text
}

fn behind(facts: &Facts) -> String {
    let unpublished = &facts.volume.unpublished;
    let mut text = match unpublished.oldest_age_ms {
        None => "nothing: all that was acknowledged is in the bucket".to_owned(),
        Some(age) => {
            format!("{}, the oldest write {} old", show_size(unpublished.bytes), show_span(age))
        }
    };
    let limits = [facts.lag_ms_max.map(show_span), facts.lag_bytes_max.map(show_size)];
    let limits = limits.into_iter().flatten().collect::<Vec<_>>();
    if !limits.is_empty() {
        text += &format!("; writes wait at {} (--max-lag)", limits.join(" or "));
    }
    text
}

fn cache(volume: &VolumeStatus) -> String {
    let Some(cache) = &volume.cache else { return "none: another process has it".to_owned() };
    let asked = cache.hits + cache.misses;
    let rate = match asked {
        0 => "nothing asked yet".to_owned(),
        _ => format!("{:.1} % of {asked} frames found", cache.hits as f64 * 100.0 / asked as f64),
    };
    format!("{} of {}, {rate}", show_size(cache.used_bytes), show_size(cache.bytes_max))
}

fn describe(garbage: &GarbageStatus) -> String {
    let waiting = match garbage.waiting_objects {
        0 => "none waiting".to_owned(),
        objects => format!("{objects} waiting ({})", show_size(garbage.waiting_bytes)),
    };
    format!(
        "{} objects deleted ({}), {} moved, {waiting}",
        garbage.deleted_objects,
        show_size(garbage.deleted_bytes),
        show_size(garbage.moved_bytes)
    )
}

fn memory(facts: &Facts) -> String {
    let memory = &facts.volume.memory;
    let resident =
        facts.resident_bytes.map_or(String::new(), |bytes| format!("{} in all; ", show_size(bytes)));
    format!(
        "{resident}frames and pages {} of {}, unpublished data {} of {}",
        show_size(memory.frames_bytes),
        show_size(memory.frames_bytes_max),
        show_size(memory.unpublished_bytes),
        show_size(memory.unpublished_bytes_max)
    )
}

fn requests(facts: &Facts) -> String {
    let requests = &facts.store.requests;
    let all = [&requests.put, &requests.get, &requests.head, &requests.list, &requests.delete];
    let failed: u64 = all.iter().map(|totals| totals.failed).sum();
    let moved =
        |name: &str, totals: &CallTotals| format!("{} {name} ({})", totals.calls, show_size(totals.bytes));
    let count = |name: &str, totals: &CallTotals| format!("{} {name}", totals.calls);
    let kinds = [
        moved("put", &requests.put),
        moved("get", &requests.get),
        count("head", &requests.head),
        count("list", &requests.list),
        count("delete", &requests.delete),
    ];
    let cost = facts.store.requests_usd.map_or(String::new(), |usd| {
        format!("; about {usd:.4} US dollars at Amazon's prices (S3 Standard, us-east-1)")
    });
    format!("{}; {failed} failed{cost}", kinds.join(", "))
}
