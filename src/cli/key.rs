//! `s3bd key`: the secrets that open a volume.

use std::io::Write;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    confirm::confirm,
    exit,
    new_secret::{CostArgs, NewSecretArgs, parse_label},
    say,
    secret::SecretArgs,
    size::show_size,
    target::{Outside, Target},
    tell,
};
use crate::{
    format::slot::{Slot, Unlock},
    seal::slot::Secret,
    store::open::OldVersions,
    volume::{
        bucket::Bucket,
        error::VolumeError,
        format_time,
        slots::{self, KeySlot, NewSecret, Unlocked},
    },
};

/// The secrets that open a volume.
#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// List the key slots: what kind of secret each is for, what it is called, when it was made. Needs no secret.
    List(List),
    /// Make another secret open the volume, too: a password, a key file, or a recovery key to be written down.
    Add(Box<Add>),
    /// Make a secret open the volume no more.
    ///
    /// Whoever opened the volume with it before may have kept what it protects: to shut them out of what is written from
    /// now on, copy the data to a new volume.
    Remove(Remove),
    /// Put another secret in the place of the one that is given, in all slots that it opens. Touches no data.
    Change(Box<Add>),
}

/// List the key slots.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    target: Target,
    /// Print them as JSON.
    #[arg(long)]
    json: bool,
}

/// A secret that opens the volume, and a new one.
#[derive(Debug, Args)]
pub(super) struct Add {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    new: NewSecretArgs,
    /// What to call the new secret [default: its kind; change: what the old one was called, if both are of one kind].
    #[arg(long, value_parser = parse_label, help_heading = "New secret")]
    label: Option<String>,
    #[command(flatten)]
    cost: CostArgs,
}

/// Remove a key slot.
#[derive(Debug, Args)]
pub(super) struct Remove {
    #[command(flatten)]
    target: Target,
    /// The slot or the label, as s3bd key list shows them.
    #[arg(value_name = "SLOT|LABEL")]
    which: String,
    #[command(flatten)]
    secret: SecretArgs,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

impl Key {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List(list) => list.run().await,
            Self::Add(add) => add.add().await,
            Self::Remove(remove) => remove.run().await,
            Self::Change(change) => change.change().await,
        }
    }
}

/// Unlocks the volume and keeps its master key, and the secret that opened it.
async fn unlock(
    target: &Target,
    outside: &Outside,
    secret: &SecretArgs,
) -> anyhow::Result<(Unlocked, Secret)> {
    let name = target.name();
    let (header, _) = Bucket::header(&*outside.env.store).await.with_context(|| name.clone())?;
    let secret = secret.obtain(&name, header.protection).await?;
    let unlocked = slots::unlock(&*outside.env.store, &secret).await.context(name)?;
    Ok((unlocked, secret))
}

/// A slot as `key list` shows it.
#[derive(Serialize)]
struct Line {
    slot: String,
    /// "password", "key-file", "recovery-key", "none"; none where it is damaged.
    kind: Option<&'static str>,
    label: Option<String>,
    created_ms: Option<u64>,
    memory_bytes: Option<u64>,
    passes: Option<u32>,
    lanes: Option<u32>,
    /// What is wrong with it.
    damage: Option<String>,
}

impl Line {
    fn of(there: &KeySlot) -> Self {
        let slot = there.slot.as_ref().ok();
        let cost = slot.and_then(|slot| match slot.unlock {
            Unlock::Password(cost) => Some(cost),
            Unlock::Nothing | Unlock::KeyFile | Unlock::RecoveryKey => None,
        });
        Self {
            slot: there.id().to_owned(),
            kind: slot.map(kind),
            label: slot.map(|slot| slot.label.clone()),
            created_ms: slot.map(|slot| slot.created_ms),
            memory_bytes: cost.map(|cost| u64::from(cost.memory_kib) << 10),
            passes: cost.map(|cost| cost.passes),
            lanes: cost.map(|cost| cost.lanes),
            damage: there.slot.as_ref().err().map(ToString::to_string),
        }
    }
}

fn kind(slot: &Slot) -> &'static str {
    match slot.unlock {
        Unlock::Nothing => "none",
        Unlock::Password(_) => "password",
        Unlock::KeyFile => "key-file",
        Unlock::RecoveryKey => "recovery-key",
    }
}

/// Whoever writes to the bucket chooses labels and names: none of them moves the cursor.
fn printable(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let env = self.target.outside().await?.env;
        Bucket::header(&*env.store).await.with_context(|| name.clone())?;
        let slots = slots::load_slots(&*env.store).await.with_context(|| name.clone())?;
        if slots.is_empty() {
            return Err(VolumeError::NoSlot { detail: "there is none".to_owned() }).context(name);
        }
        let lines: Vec<_> = slots.iter().map(Line::of).collect();
        if self.json {
            say(serde_json::to_string_pretty(&lines)?);
            return Ok(());
        }
        let row = |slot: &str, kind: &str, label: &str, made: &str, cost: &str| {
            say(format!("{slot:<10}{kind:<14}{label:<18}{made:<25}{cost}").trim_end());
        };
        row("SLOT", "KIND", "LABEL", "MADE", "COST OF A TRY");
        for line in lines {
            let slot = printable(&line.slot);
            if let Some(damage) = line.damage {
                say(format_args!("{slot:<10}damaged: {damage}"));
                continue;
            }
            let cost = match (line.memory_bytes, line.passes, line.lanes) {
                (Some(memory), Some(passes), Some(lanes)) => {
                    format!("{}, {passes} passes, {lanes} lanes", show_size(memory))
                }
                _ => String::new(),
            };
            let label = printable(&line.label.unwrap_or_default());
            row(
                &slot,
                line.kind.unwrap_or_default(),
                &label,
                &format_time(line.created_ms.unwrap_or(0)),
                &cost,
            );
        }
        Ok(())
    }
}

impl Add {
    async fn add(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let cost = self.cost.cost()?;
        let outside = self.target.outside().await?;
        let (unlocked, _) = unlock(&self.target, &outside, &self.secret).await?;
        let chosen = self.new.choose(&name, &outside.env)?;
        let label = self.label.as_deref().unwrap_or(chosen.label);
        let new = NewSecret { secret: &chosen.secret, cost, label };
        let slot = slots::add(&outside.env, &unlocked, &new).await.with_context(|| name.clone())?;
        let id = slots::id(&slot);
        let done = format!("{name}: key slot {id} ({label}) opens the volume, too");
        if let Err(error) = show(&done, chosen.shown.as_deref().map(String::as_str)) {
            // A key that nobody saw must not stay.
            slots::remove(&outside.env, &unlocked.header, &slot).await.with_context(|| name.clone())?;
            anyhow::bail!("{name}: the recovery key could not be shown: {error}; nothing was changed");
        }
        Ok(())
    }

    async fn change(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let cost = self.cost.cost()?;
        // Were it not seen, nothing else might be left that opens the volume.
        if self.new.recovery_key {
            let text = "a recovery key takes no other secret's place: make one with s3bd key add, and remove the old secret \
                        with s3bd key remove";
            return Err(exit::usage(text));
        }
        let outside = self.target.outside().await?;
        let (unlocked, old_secret) = unlock(&self.target, &outside, &self.secret).await?;
        let chosen = self.new.choose(&name, &outside.env)?;
        let there = slots::load_slots(&*outside.env.store).await.with_context(|| name.clone())?;
        let old = there.iter().find(|slot| slot.name == unlocked.slot).and_then(|old| old.slot.as_ref().ok());
        let is_same_kind = |old: &&Slot| kind_of(old.unlock) == kind_of(chosen.secret.unlock(cost));
        let label = self.label.as_deref().or(old.filter(is_same_kind).map(|old| &old.label[..]));
        let label = label.unwrap_or(chosen.label);
        let new = NewSecret { secret: &chosen.secret, cost, label };
        let changed = slots::change(&outside.env, &unlocked, &old_secret, &new).await;
        let changed = changed.with_context(|| name.clone())?;
        let old: Vec<_> = changed.old.iter().map(|slot| printable(slots::id(slot))).collect();
        let id = slots::id(&changed.new);
        say(format_args!(
            "{name}: key slot {id} ({}) is in the place of {}",
            printable(label),
            old.join(", ")
        ));
        warn_of_old_versions(&outside, &name, &old).await;
        Ok(())
    }
}

fn kind_of(unlock: Unlock) -> std::mem::Discriminant<Unlock> {
    std::mem::discriminant(&unlock)
}

/// Shows what was done and the recovery key, in one write, so that no buffer keeps it.
fn show(done: &str, key: Option<&str>) -> std::io::Result<()> {
    let Some(key) = key else {
        say(done);
        return Ok(());
    };
    let text = zeroize::Zeroizing::new(format!(
        "{done}. This recovery key is shown only now: write it down.\n\n    {key}\n\nIt can be typed wherever the password is \
         asked for.\n"
    ));
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

impl Remove {
    async fn run(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let outside = self.target.outside().await?;
        let (unlocked, _) = unlock(&self.target, &outside, &self.secret).await?;
        let there = slots::load_slots(&*outside.env.store).await.with_context(|| name.clone())?;
        let slot = slots::find(&there, &self.which).with_context(|| name.clone())?;
        let id = printable(slot.id());
        let what = match &slot.slot {
            Ok(slot) => format!("key slot {id} ({}, {:?})", kind(slot), slot.label),
            Err(_) => format!("the damaged key slot {id}"),
        };
        let own = if slot.name == unlocked.slot { ", the one whose secret was just given" } else { "" };
        if !self.yes && !confirm(&name, &format!("remove {what}{own}?"), exit::USAGE)? {
            anyhow::bail!("{name}: nothing was changed");
        }
        slots::remove(&outside.env, &unlocked.header, &slot.name).await.with_context(|| name.clone())?;
        say(format_args!("{name}: removed {what}{own}"));
        warn_of_old_versions(&outside, &name, &[id]).await;
        Ok(())
    }
}

async fn warn_of_old_versions(outside: &Outside, name: &str, ids: &[String]) {
    let text = match outside.opened.old_versions().await {
        OldVersions::Gone => return,
        OldVersions::Kept => "this bucket keeps old versions of its objects",
        OldVersions::Unknown => {
            "the store does not say whether it keeps old versions of its objects; if it does"
        }
    };
    let slots = ids.iter().map(|id| format!("keys/{id}")).collect::<Vec<_>>().join(", ");
    tell(format_args!(
        "{name}: {text}: delete those of {slots}, too, or the old secret opens the volume for whoever reads them"
    ));
}
