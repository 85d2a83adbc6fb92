//! `s3bd sync`: waits until everything acknowledged is in the bucket.

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    say,
    size::{show_size, show_span},
    target::Target,
};
use crate::control::{Progress, Request};

/// Wait until everything that the open server on this host has acknowledged so far is in the bucket.
#[derive(Debug, Args)]
pub(super) struct Sync {
    #[command(flatten)]
    target: Target,
}

const OTHERWISE: &str = "what its last server acknowledged is in the bucket if it was closed; s3bd info says whether it \
    was, and s3bd recover uploads what is left in the log of this host";

impl Sync {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let mut server = self.target.server(OTHERWISE).await?;
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec} {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_prefix("uploading");
        let done = server.ask(&Request::Sync, |progress| show(&bar, progress)).await;
        bar.finish_and_clear();
        done.with_context(|| name.clone())?;
        say(format_args!("{name}: everything acknowledged before is in the bucket"));
        Ok(())
    }
}

fn show(bar: &ProgressBar, Progress { left_bytes, store_away_ms }: Progress) {
    if bar.length() == Some(0) {
        bar.set_length(left_bytes);
    }
    let total = bar.length().unwrap_or(left_bytes);
    bar.set_position(total.saturating_sub(left_bytes));
    bar.set_message(match store_away_ms {
        Some(ms) => {
            format!("(the store has not answered for {}; {} left)", show_span(ms), show_size(left_bytes))
        }
        None => String::new(),
    });
}
