//! `s3bd flatten`: makes a clone independent of its origin.

use clap::Args;
use serde::Serialize;

use super::{exit, progress::Left, say, secret::SecretArgs, size::show_size, target::Target};
use crate::control::{Answer, Request};

/// Copy what a clone reads in its origin's objects into objects of its own, until it depends on nothing.
///
/// The clone may be open on this host, and in use: the server does it then. It must have no snapshots. The origin, which needs
/// no opening and no password, keeps its snapshot until that is deleted. If it is interrupted, the clone is whole and depends
/// on less; run it again.
#[derive(Debug, Args)]
pub(super) struct Flatten {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Done {
    origin: Option<String>,
    copied_bytes: u64,
}

impl Flatten {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let mut bar = Left::new(&name, "copying");
        let show = |progress| bar.show(progress);
        let done = self.target.perform_shown(&self.secret, Request::Flatten, show).await;
        drop(bar);
        let (origin, copied_bytes) = match done? {
            Answer::Flattened { origin, copied_bytes } => (origin, copied_bytes),
            answer => return Err(exit::nonsense(&answer)),
        };
        if self.json {
            say(serde_json::to_string_pretty(&Done { origin, copied_bytes })?);
            return Ok(());
        }
        match origin {
            None => say(format_args!("{name}: depends on nothing; nothing was changed")),
            Some(origin) => say(format_args!(
                "{name}: depends on nothing any more ({} copied); the snapshot of {origin} that was kept for it can be deleted",
                show_size(copied_bytes),
            )),
        }
        Ok(())
    }
}
