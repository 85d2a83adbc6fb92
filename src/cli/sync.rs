//! `s3bd sync`: waits until everything acknowledged is in the bucket.

use anyhow::Context;
use clap::Args;

use super::{progress::Left, say, target::Target};
use crate::control::Request;

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
        let mut bar = Left::new(&name, "uploading");
        let done = server.ask(&Request::Sync, |progress| bar.show(progress)).await;
        drop(bar);
        done.with_context(|| name.clone())?;
        say(format_args!("{name}: everything acknowledged before is in the bucket"));
        Ok(())
    }
}
