//! A progress bar on a terminal while unpublished data is uploaded.

use std::{sync::Arc, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::{
    size::{show_size, show_span},
    tell,
};
use crate::{
    control::Progress,
    volume::{core::Core, open::OpenReport},
};

/// When a line is printed first, and how often, where standard error is no terminal.
const TELL_FIRST: Duration = Duration::from_secs(10);
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// Shows how much of `core`'s unpublished data is uploaded, until the future is dropped; where standard error is no terminal, by a
/// line now and then.
pub(super) async fn show_upload(core: Arc<Core>, what: &str) {
    let total = core.unpublished_bytes();
    let bar = ProgressBar::with_draw_target(Some(total.max(1)), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    );
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    let bar = Clearing(bar);
    let mut told_next = Instant::now() + TELL_FIRST;
    loop {
        let left = core.unpublished_bytes();
        if bar.0.is_hidden() && Instant::now() >= told_next {
            tell(format_args!("{what}: {} left", show_size(left)));
            told_next = Instant::now() + TELL_INTERVAL;
        }
        if left > total {
            bar.0.set_length(left);
        }
        bar.0.set_position(total.saturating_sub(left));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct Clearing(ProgressBar);

impl Drop for Clearing {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Tells people that a volume had not been closed, and what that meant; nothing of one that had.
pub(super) fn tell_unclosed(name: &str, report: &OpenReport) {
    if report.was_clean {
        return;
    }
    let found = if report.has_log {
        describe_replay(&report.replayed)
    } else {
        describe_lost_log(&report.newest, false)
    };
    tell(format_args!("{name} was not closed; {found}"));
}

/// What a volume held in its log, in words.
pub(super) fn describe_replay(replayed: &crate::volume::replay::Replayed) -> String {
    let mut text = match replayed.times_ms {
        None => "the local log held nothing that was not in the bucket".to_owned(),
        Some((first, last)) => format!(
            "the local log held {} that the bucket did not have, from {} to {}",
            replayed.tally.describe(show_size),
            crate::volume::format_time(first),
            crate::volume::format_time(last),
        ),
    };
    if let Some(bytes) = replayed.size_bytes {
        text += &format!("; they gave the volume a size of {} ({bytes} bytes)", show_size(bytes));
    }
    if let Some((bytes, why)) = &replayed.torn {
        text += &format!(
            "; {bytes} bytes at its end were torn off ({why}): they were being written when the power went, and no flush \
             had been answered for them"
        );
    }
    text
}

/// What another host had not published, in words, where its log is not here. `passed`: later epochs were, and cannot be used.
pub(super) fn describe_lost_log(newest: &crate::format::manifest::Manifest, passed: bool) -> String {
    let host = &newest.writer.host;
    if passed {
        return format!(
            "nothing that is newer can be had from a log here: the volume is as it was at {}; what {host} published later is \
             lost with those epochs",
            crate::volume::format_time(newest.time_ms),
        );
    }
    let unpublished = match newest.unpublished_bytes {
        0 => format!("{host} had nothing else to publish when it published that"),
        bytes => format!("{host} had {} not yet published when it published that", show_size(bytes)),
    };
    format!(
        "this host has no log of that writer, so the volume is as it was at {}; {unpublished}, and what it wrote later is \
         in its own log alone",
        crate::volume::format_time(newest.time_ms),
    )
}

/// The snapshot that a takeover took, and what for.
pub(super) fn describe_taken(
    snapshot: &crate::format::manifest::Snapshot,
    newest: &crate::format::manifest::Manifest,
) -> String {
    let (name, host) = (&snapshot.name, &newest.writer.host);
    format!(
        "took snapshot {name} of epoch {}, on which the log of {host} goes on: with it, s3bd recover --rescue-to on {host} can \
         still make a volume of what is in that log alone; once it is rescued or given up, s3bd snapshot delete removes it",
        snapshot.epoch,
    )
}

/// A bar over things that are counted. Nothing where standard error is no terminal.
pub(super) struct Counting(Clearing);

impl Counting {
    pub(super) fn new(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {human_pos}/{human_len}, {eta} left");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        Self(Clearing(bar))
    }

    pub(super) fn show(&self, done: u64, total: u64) {
        self.0.0.set_length(total);
        self.0.0.set_position(done);
    }
}

/// For so long the store has not answered before people are told, milliseconds: what is made again once is nothing to tell.
const STORE_AWAY_MS_MIN: u64 = 2000;

/// Tells people who wait for a server that it waits for the store, and when that is over.
pub(super) struct StoreAway {
    name: String,
    is_told: bool,
}

impl StoreAway {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), is_told: false }
    }

    pub(super) fn show(&mut self, Progress { store_away_ms, .. }: Progress) {
        let name = &self.name;
        match store_away_ms {
            Some(ms) if ms >= STORE_AWAY_MS_MIN && !self.is_told => {
                tell(format_args!(
                    "{name}: the store has not answered for {}: waiting for it",
                    show_span(ms)
                ));
                self.is_told = true;
            }
            None if self.is_told => {
                tell(format_args!("{name}: the store answers again"));
                self.is_told = false;
            }
            _ => {}
        }
    }
}

/// What is left of something, bytes. Where standard error is no terminal, only whether the store is away.
pub(super) struct Left {
    bar: Clearing,
    away: StoreAway,
}

impl Left {
    pub(super) fn new(name: &str, what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec} {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        Self { bar: Clearing(bar), away: StoreAway::new(name) }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        let Progress { left_bytes, store_away_ms } = progress;
        let Clearing(bar) = &self.bar;
        if bar.is_hidden() {
            return self.away.show(progress);
        }
        let total = bar.length().unwrap_or(0).max(left_bytes);
        bar.set_length(total);
        bar.set_position(total - left_bytes);
        bar.set_message(match store_away_ms {
            Some(ms) => {
                format!("(the store has not answered for {}; {} left)", show_span(ms), show_size(left_bytes))
            }
            None => String::new(),
        });
    }
}

/// Bytes done, where nobody knows how many there are. Nothing where standard error is no terminal.
pub(super) struct Bytes(Clearing);

impl Bytes {
    pub(super) fn new(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{prefix} {spinner} {binary_bytes}, {binary_bytes_per_sec}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        Self(Clearing(bar))
    }

    pub(super) fn show(&self, done: u64) {
        self.0.0.set_position(done);
    }
}

/// Objects done, where nobody knows how many there are. Nothing where standard error is no terminal.
pub(super) struct Counted(Clearing);

impl Counted {
    pub(super) fn new(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{prefix} {human_pos} objects") {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        Self(Clearing(bar))
    }

    pub(super) fn show(&self, done: u64) {
        self.0.0.set_position(done);
    }
}
