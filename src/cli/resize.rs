//! `s3bd resize`: makes a volume larger or smaller, through its server or, where nobody has it open, by itself.

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{
    confirm::confirm,
    exit::{self, CliError},
    open::close,
    perform::perform,
    progress::{StoreAway, tell_unclosed},
    say,
    secret::SecretArgs,
    serve::Signals,
    size::{NewSize, SIZE_HELP, parse_new_size, show_size},
    target::Target,
};
use crate::{
    control::{Answer, Request, Resized, Working, client::Client},
    seal::frame::Compression,
    volume::{
        Volume,
        error::VolumeError,
        open::{Agreed, open},
        settings::Settings,
    },
};

/// Make a volume larger or smaller.
///
/// While it is open on this host, its server does it, under the load of its clients. What a smaller size cuts off is
/// discarded: make the file system smaller first. Growing again reads zeros there. Snapshots keep their size.
#[derive(Debug, Args)]
pub(super) struct Resize {
    #[command(flatten)]
    target: Target,
    /// The new size, or by how much it changes: 20GB, +10GB, -10GB.
    #[arg(short, long, value_parser = parse_new_size, allow_hyphen_values = true, value_name = "[+-]SIZE",
        long_help = format!("The new size, or by how much it changes (20GB, +10GB, -10GB): {SIZE_HELP}. A multiple of the \
        block size."))]
    size: NewSize,
    /// Answer yes to what would be asked: whether to discard what lies beyond a smaller size.
    #[arg(long)]
    yes: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    secret: SecretArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Done {
    from_bytes: u64,
    size_bytes: u64,
    /// Data beyond the new end; 0 where the volume grew.
    discarded_bytes: u64,
    /// Whether that is all.
    discarded_exact: bool,
    /// Whether a server did it.
    online: bool,
    /// The programs of the NBD clients that are connected to it, where they are known.
    clients: Vec<Option<String>>,
}

/// Who does it.
enum Doer<'a> {
    /// The server of the volume of this name.
    Server(&'a mut Client, &'a str),
    Own(&'a Volume),
}

impl Doer<'_> {
    async fn size_bytes(&mut self) -> anyhow::Result<u64> {
        match self {
            Self::Own(volume) => Ok(volume.core().state().size_bytes),
            Self::Server(server, _) => match server.ask(&Request::Status, |_| ()).await? {
                Answer::Status(status) => Ok(status.volume.size_bytes),
                other => anyhow::bail!("the server's answer makes no sense: {other:?}"),
            },
        }
    }

    async fn resize(&mut self, from_bytes: u64, size_bytes: u64, dry_run: bool) -> anyhow::Result<Resized> {
        let request = Request::Resize { from_bytes, size_bytes, dry_run };
        let answer = match self {
            Self::Own(volume) => perform(volume.core(), &request, &Working::default())
                .await
                .unwrap_or(Err(VolumeError::ReadOnly))?,
            Self::Server(server, name) => {
                let mut away = StoreAway::new(name);
                server.ask(&request, |progress| away.show(progress)).await?
            }
        };
        match answer {
            Answer::Resized(resized) => Ok(resized),
            other => anyhow::bail!("the server's answer makes no sense: {other:?}"),
        }
    }
}

impl Resize {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let done = match self.target.find_server().await? {
            Some(mut server) => self.change(Doer::Server(&mut server, &name)).await?,
            None => self.open_and_change().await?,
        };
        if self.json {
            say(serde_json::to_string_pretty(&done)?);
        } else {
            print(&name, &done);
        }
        Ok(())
    }

    /// Opens the volume as a writer, changes its size, and closes it.
    async fn open_and_change(&self) -> anyhow::Result<Done> {
        let name = self.target.name();
        let (outside, bucket) = self.target.unlock(&self.secret).await?;
        let mut signals = Signals::catch()?;
        let compression = Compression::of(bucket.header.compression);
        let settings = Settings { compression, ..Settings::default() };
        let (volume, report) = tokio::select! {
            opened = open(outside.env, bucket, settings, Agreed::default()) => opened.with_context(|| name.clone())?,
            () = signals.next() => anyhow::bail!("{name}: interrupted before anything was changed"),
        };
        tell_unclosed(&name, &report);
        let changed = self.change(Doer::Own(&volume)).await;
        let closed = close(&volume, &mut signals, &name).await;
        let done = changed?;
        closed.map(|()| done)
    }

    async fn change(&self, mut doer: Doer<'_>) -> anyhow::Result<Done> {
        let name = self.target.name();
        let online = matches!(doer, Doer::Server(..));
        let from_bytes = doer.size_bytes().await.with_context(|| name.clone())?;
        let Some(size_bytes) = self.size.of(from_bytes) else {
            let text =
                format!("{name}: has {} ({from_bytes} bytes): that leaves no size", show_size(from_bytes));
            return Err(exit::usage(text));
        };
        let shrinks = size_bytes < from_bytes;
        let mut done = Done {
            from_bytes,
            size_bytes,
            discarded_bytes: 0,
            discarded_exact: true,
            online,
            clients: Vec::new(),
        };
        if shrinks {
            let planned = doer.resize(from_bytes, size_bytes, true).await.with_context(|| name.clone())?;
            done.discarded_bytes = planned.discarded_bytes.unwrap_or(0);
            done.discarded_exact = planned.discarded_exact;
            if !self.yes && !confirm(&name, &question(&done), exit::USAGE)? {
                return Err(CliError { code: 1, text: format!("{name}: nothing was changed") }.into());
            }
        }
        done.clients = doer.resize(from_bytes, size_bytes, false).await.with_context(|| name)?.clients;
        Ok(done)
    }
}

fn discarded(done: &Done) -> String {
    let more = if done.discarded_exact { "" } else { "more than " };
    match done.discarded_bytes {
        0 if done.discarded_exact => "no data lies beyond the new end".to_owned(),
        bytes => format!("{more}{} ({bytes} bytes) of data beyond the new end", show_size(bytes)),
    }
}

fn question(done: &Done) -> String {
    let what = match done.discarded_bytes {
        0 if done.discarded_exact => discarded(done),
        _ => format!("this discards {}", discarded(done)),
    };
    format!(
        "from {} to {}: {what}, and a file system that reaches beyond it is damaged; go on?",
        show_size(done.from_bytes),
        show_size(done.size_bytes),
    )
}

fn print(name: &str, done: &Done) {
    let Done { from_bytes, size_bytes, .. } = *done;
    if from_bytes == size_bytes {
        return say(format_args!("{name}: has {} ({size_bytes} bytes) already", show_size(size_bytes)));
    }
    let gone = match size_bytes < from_bytes {
        true if done.discarded_bytes > 0 || !done.discarded_exact => {
            format!(", discarding {}", discarded(done))
        }
        _ => String::new(),
    };
    say(format_args!(
        "{name}: resized from {} to {} ({size_bytes} bytes){gone}",
        show_size(from_bytes),
        show_size(size_bytes)
    ));
    tell_clients(&done.clients);
    if size_bytes > from_bytes {
        say(FILE_SYSTEM);
    }
}

/// What the users of connected clients have to do: the protocol tells a size once, in the handshake.
fn tell_clients(clients: &[Option<String>]) {
    match clients.len() {
        0 => return,
        1 => say("1 client is connected, and learns the new size when it connects again:"),
        count => say(format_args!(
            "{count} clients are connected, and learn the new size when they connect again:"
        )),
    }
    for (program, what) in CLIENTS {
        let may_be = |client: &Option<String>| client.as_ref().is_none_or(|name| name.starts_with(program));
        if clients.iter().any(may_be) {
            say(format_args!("  {program}: {what}"));
        }
    }
}

/// By the beginning of the program's name.
const CLIENTS: [(&str, &str); 2] = [
    (
        "nbd-client",
        "umount, nbd-client -d /dev/nbdN, connect again; blockdev --getsize64 /dev/nbdN shows the size",
    ),
    (
        "qemu",
        "restart the guest, or attach the disk anew; where qemu has connected again by itself, block_resize tells the guest",
    ),
];
const FILE_SYSTEM: &str = "a file system grows on its own word: resize2fs DEVICE (ext4), btrfs filesystem resize max \
    MOUNTPOINT, xfs_growfs MOUNTPOINT";
