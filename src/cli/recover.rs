//! `s3bd recover`: uploads what the log of this host holds, on the newest epoch or on the newest whole one, and closes
//! the volume.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use super::{
    confirm::confirm,
    exit::{CliError, DAMAGED, DIVERGED},
    open::close,
    progress::{Bytes, Counting, describe_lost_log, describe_replay, describe_taken, show_upload},
    rebuilt, say,
    secret::SecretArgs,
    serve::Signals,
    size::show_size,
    target::Target,
};
use crate::{
    format::{manifest::Manifest, slot::Argon2},
    seal::frame::Compression,
    store::location::Location,
    volume::{
        base::{Base, Fallback, find_whole},
        bucket::{Bucket, Published},
        env::Env,
        error::VolumeError,
        format_time,
        open::{Agreed, OpenReport, Repair, inspect, open_repaired},
        rebuild::rebuild,
        rescue::{Destination, rescue},
        settings::Settings,
        status::Waiting,
    },
};

/// Lines about epochs that are given up, or left out, before the rest is only counted.
pub(super) const LINES_MAX: usize = 20;

/// Upload what the local log holds, after a crash or a loss.
#[derive(Debug, Args)]
pub(super) struct Recover {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take the volume from a host that has not closed it.
    #[arg(long)]
    takeover: bool,
    /// Give up what the local log holds of a history that another writer has overtaken, or that cannot be replayed.
    #[arg(long)]
    discard: bool,
    /// Go on although the bucket holds an older state than this host has seen.
    #[arg(long)]
    accept_rollback: bool,
    /// Where no manifest is left, or the newest ones are gone: put the volume together from its objects and claims alone.
    #[arg(long)]
    scan: bool,
    /// Go back to the newest epoch of which every page and object is there, although the newest can be opened: for
    /// damage that s3bd fsck --repair cannot mend.
    #[arg(long, conflicts_with = "scan")]
    fall_back: bool,
    /// Make a new volume of what the local log holds of a history that another writer has overtaken: a full copy of the
    /// epoch it goes on from, and the log on top. The old volume and the log stay as they are.
    #[arg(long, value_name = "NEW", conflicts_with_all = ["discard", "scan", "fall_back", "takeover", "dry_run"])]
    rescue_to: Option<Location>,
    /// Answer yes to what would be asked: whether to give up what cannot be had back.
    #[arg(long)]
    yes: bool,
}

/// Says of the snapshots that were taken for a log that they are no more needed for it.
fn say_left(name: &str, snapshots: &[String]) {
    for snapshot in snapshots {
        say(format_args!(
            "{name}: snapshot {snapshot} was kept for what is in this log: once that is rescued or given up, s3bd snapshot \
             delete removes it"
        ));
    }
}

/// What is given up, in a question, and the exit code where that is not agreed to.
struct Loss {
    question: String,
    code: u8,
}

impl Recover {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let name = self.target.name();
        if let Some(location) = &self.rescue_to {
            return self.rescue(location).await;
        }
        let (outside, bucket) = self.target.unlock(&self.secret).await?;
        let mut losses = Vec::new();
        let (report, repair) = self.look(&outside.env, &bucket, &mut losses).await?;
        self.say(&report, repair.base.is_some());
        if report.given_up.tally.records() > 0 {
            losses.push(Loss {
                question: format!(
                    "give up {} that only the local log holds?",
                    report.given_up.tally.describe(show_size)
                ),
                code: DIVERGED,
            });
        }
        if let Some(why) = &report.given_up.uncounted {
            let question =
                format!("give up the local log, of which it is not known what it holds alone ({why})?");
            losses.push(Loss { question, code: DIVERGED });
        }
        if self.has_nothing_to_do(&report, &repair) {
            let text = "nothing to recover: the volume is closed, and everything is in the bucket";
            say(format_args!("{name}: {text}, as epoch {}; nothing was changed", report.newest.epoch));
            return Ok(());
        }
        if self.dry_run {
            say(format_args!("{name}: nothing was changed"));
            return Ok(());
        }
        for Loss { question, code } in losses.iter().filter(|_| !self.yes) {
            if !confirm(&name, question, *code)? {
                return Err(CliError { code: *code, text: format!("{name}: nothing was changed") }.into());
            }
        }
        self.publish(outside.env, bucket, &repair).await
    }

    /// Whether the bucket has all there is, and its state is that of a closed volume. What was agreed to about an older bucket
    /// or the log counts with the next epoch alone.
    fn has_nothing_to_do(&self, report: &OpenReport, repair: &Repair) -> bool {
        let (log, given_up) = (&report.replayed, &report.given_up);
        let is_repaired = repair.base.is_some() || repair.cut_log;
        let is_log_done = log.tally.records() + given_up.tally.records() == 0 && given_up.uncounted.is_none();
        report.was_clean && is_log_done && !is_repaired && !self.accept_rollback && !self.discard
    }

    /// Makes the new volume; it has the password of the old one.
    async fn rescue(&self, location: &Location) -> anyhow::Result<()> {
        let (old, name) = (self.target.name(), location.to_string());
        let env = self.target.outside().await?.env;
        let outside = self.target.at(location.clone()).outside().await?;
        let (header, _) = Bucket::header(&*env.store).await.with_context(|| old.clone())?;
        // Asked for once: what opens the old volume is what the new one gets.
        let secret = self.secret.obtain(&old, header.protection).await?;
        let bucket = Bucket::unlock(Arc::clone(&env.store), &secret).await.with_context(|| old.clone())?;
        let compression = Compression::of(bucket.header.compression);
        let settings = Settings { compression, ..Settings::default() };
        let cost = Argon2::RECOMMENDED;
        let destination = Destination { env: outside.env, secret: &secret, cost, settings };
        let mut signals = Signals::catch()?;
        let bar = Bytes::new("copying");
        let rescued = tokio::select! {
            rescued = rescue(&env, &bucket, destination, |bytes| bar.show(bytes)) => rescued.with_context(|| name.clone())?,
            () = signals.next() => anyhow::bail!("{name}: interrupted: the volume is not finished; run it again"),
        };
        drop(bar);
        let base = &rescued.base.manifest;
        say(format_args!(
            "{name}: made a volume of epoch {} of {} ({} copied) and {} of the local log; {} and the log are as \
             they were: once you have what you need, s3bd recover --discard gives the log up",
            base.epoch,
            format_time(base.time_ms),
            show_size(rescued.copied_bytes),
            rescued.replayed.tally.describe(show_size),
            old,
        ));
        say_left(&old, &rescued.kept_by);
        // It is a volume, and not of all that the log was to hold: whoever goes on to give the log up is to know.
        rescued.damage.map_or(Ok(()), |damage| {
            let text = format!("{old}: write-ahead log: {damage}; {name} ends before the damage");
            Err(CliError { code: DAMAGED, text }.into())
        })
    }

    fn agreed(&self) -> Agreed {
        Agreed { takeover: self.takeover, rollback: self.accept_rollback, discard: self.discard }
    }

    /// Finds a way to open the volume, and says what it gives up. Changes nothing.
    async fn look(
        &self,
        env: &Env,
        bucket: &Bucket,
        losses: &mut Vec<Loss>,
    ) -> anyhow::Result<(OpenReport, Repair)> {
        let name = self.target.name();
        let mut repair = Repair::default();
        if self.scan {
            repair.base = Some(self.rebuild(env, bucket, losses).await?);
        }
        if self.fall_back {
            repair.base = Some(self.fall_back(bucket, None, losses).await?);
        }
        loop {
            match inspect(env, bucket, self.agreed(), &repair).await {
                Ok(report) => return Ok((report, repair)),
                Err(error) if error.is_of_line() && repair.base.is_none() => {
                    repair.base = Some(self.fall_back(bucket, Some(error), losses).await?);
                }
                Err(VolumeError::LogDamaged(damage)) if damage.joins && !repair.cut_log => {
                    say(format_args!("{name}: write-ahead log: {damage}"));
                    losses.push(Loss {
                        question: format!(
                            "give up what is damaged in the log, and {} beyond it?",
                            damage.beyond.tally.describe(show_size)
                        ),
                        code: DAMAGED,
                    });
                    repair.cut_log = true;
                }
                Err(error) => return Err(error).context(name),
            }
        }
    }

    /// The newest whole epoch. `error`: why the newest one of all cannot be used, where it cannot.
    async fn fall_back(
        &self,
        bucket: &Bucket,
        error: Option<VolumeError>,
        losses: &mut Vec<Loss>,
    ) -> anyhow::Result<Base> {
        let name = self.target.name();
        let Fallback { base, passed } = find_whole(bucket).await.with_context(|| name.clone())?;
        for passed in passed.iter().take(LINES_MAX) {
            let time = passed.time_ms.map_or(String::new(), |time| format!(", of {},", format_time(time)));
            let (epoch, generation) = (passed.epoch, passed.generation);
            say(format_args!(
                "{name}: epoch {epoch} of generation {generation}{time} is not whole: {}",
                passed.why
            ));
        }
        if passed.len() > LINES_MAX {
            say(format_args!("{name}: and {} more", passed.len() - LINES_MAX));
        }
        let error = error.map_or(String::new(), |error| format!("{error}; "));
        let Some(base) = base else {
            let text = format!(
                "{name}: {error}no epoch is whole: s3bd recover --scan puts the volume together from its objects, s3bd \
                 fsck says what is damaged"
            );
            return Err(CliError { code: DAMAGED, text }.into());
        };
        let whole = &base.published.manifest;
        let time = format_time(whole.time_ms);
        match passed.first() {
            None if self.fall_back => {
                let text =
                    format!("{name}: the newest epoch, {}, is whole: leave --fall-back out", whole.epoch);
                return Err(super::exit::usage(text));
            }
            None => say(format_args!(
                "{name}: {error}the newest epoch, {} of {time}, is whole all the same: nothing is lost",
                whole.epoch
            )),
            Some(newest) => {
                let (first, last) = (whole.epoch.next(), newest.epoch.max(whole.epoch.next()));
                let lost = match first == last {
                    true => format!("epoch {first} is lost"),
                    false => format!("epochs {first} to {last} are lost"),
                };
                let text = format!(
                    "epoch {} of generation {}, published {time} by {}, is the newest whole one: {lost}, but for what the log \
                     of its writer still holds",
                    whole.epoch, whole.generation, whole.writer.host,
                );
                say(format_args!("{name}: {text}"));
                say(format_args!(
                    "{name}: where the objects of later epochs are whole, they do without those manifests: s3bd recover --scan \
                     --dry-run says how far"
                ));
                losses.push(Loss { question: format!("{text}: go on from it?"), code: DAMAGED });
            }
        }
        Ok(base)
    }

    /// The newest cut that the objects themselves add up to.
    async fn rebuild(&self, env: &Env, bucket: &Bucket, losses: &mut Vec<Loss>) -> anyhow::Result<Base> {
        let name = self.target.name();
        let whole = find_whole(bucket).await.with_context(|| name.clone())?.base;
        let no_use = |whole: &Base| {
            let Manifest { epoch, time_ms, .. } = whole.published.manifest;
            super::exit::usage(format!(
                "{name}: the manifest of epoch {epoch} of {} is whole, and no later cut is: --scan is for a volume whose \
                 newest manifests are gone; leave it out",
                format_time(time_ms)
            ))
        };
        let bar = Counting::new("reading indexes");
        let found = rebuild(bucket, env, |done, total| bar.show(done, total)).await;
        drop(bar);
        let mut found = match (found, &whole) {
            (Ok(found), Some(whole)) if !found.is_beyond(whole) => return Err(no_use(whole)),
            (Err(VolumeError::NoManifest { .. }), Some(whole)) => return Err(no_use(whole)),
            (found, _) => found.with_context(|| name.clone())?,
        };
        if let Some(whole) = &whole {
            found.take_snapshots_of(bucket, whole).await.with_context(|| name.clone())?;
        }
        let text = rebuilt::describe(&name, &found);
        say(format_args!("{name}: {text}"));
        if let Some(Base { published: Published { manifest: whole, .. }, .. }) = &whole {
            say(format_args!(
                "{name}: the newest whole manifest is that of epoch {} of {}",
                whole.epoch,
                format_time(whole.time_ms)
            ));
        }
        losses.push(Loss { question: format!("{text}: publish it?"), code: DAMAGED });
        Ok(found.base)
    }

    /// Opens the volume, uploads what is to be uploaded, and closes it.
    async fn publish(&self, env: Env, bucket: Bucket, repair: &Repair) -> anyhow::Result<()> {
        let name = self.target.name();
        let mut signals = Signals::catch()?;
        let compression = Compression::of(bucket.header.compression);
        let settings = Settings { compression, ..Settings::default() };
        // It may die anywhere on the way.
        let (volume, report) = tokio::select! {
            opened = open_repaired(env, bucket, settings, self.agreed(), repair) => opened.with_context(|| name.clone())?,
            () = signals.next() => anyhow::bail!("{name}: interrupted before anything was uploaded; run it again"),
        };
        let core = Arc::clone(volume.core());
        let end = core.state().end;
        let uploaded = async {
            tokio::select! {
                // What could not be completed on the way is told when the volume is closed all the same.
                result = volume.core().publish_to(end) => result.map(|()| true),
                () = signals.next() => Ok(false),
            }
        };
        let done = tokio::select! {
            result = uploaded => result.with_context(|| name.clone())?,
            () = show_upload(core, "uploading") => true,
        };
        if !done {
            anyhow::bail!(
                "{name}: interrupted: what was not uploaded is still in the local log; run it again"
            );
        }
        close(&volume, &mut signals, &name).await?;
        volume.core().noted.tell_incomplete(Waiting::Sync).with_context(|| name.clone())?;
        let epoch = volume.core().progress.borrow().epoch;
        let published = match report.replayed.tally {
            none if none.records() == 0 => "nothing was left to upload".to_owned(),
            tally => format!("uploaded {}", tally.describe(show_size)),
        };
        say(format_args!(
            "{name}: {published}: everything is in the bucket, as epoch {epoch}; the volume is closed"
        ));
        if let Some(snapshot) = &report.taken {
            say(format_args!("{name}: {}", describe_taken(snapshot, &report.newest)));
        }
        if report.given_up.tally.records() > 0 || report.given_up.uncounted.is_some() {
            say_left(&name, &report.left);
        }
        Ok(())
    }

    /// What was found; of a log that is given up, that alone. `goes_back`: not at the newest epoch.
    fn say(&self, report: &OpenReport, goes_back: bool) {
        let (name, newest) = (self.target.name(), &report.newest);
        say(format_args!(
            "{name}: the newest epoch in the bucket is {} of generation {}, published {} by {}{}",
            newest.epoch,
            newest.generation,
            format_time(newest.time_ms),
            newest.writer.host,
            if report.was_clean { ", which closed the volume" } else { ", which did not close the volume" },
        ));
        let given_up = &report.given_up;
        if given_up.tally.records() > 0 {
            let held = given_up.tally.describe(show_size);
            say(format_args!(
                "{name}: to be given up: {held} in the local log, which do not join on to that epoch"
            ));
        } else if let Some(why) = &given_up.uncounted {
            say(format_args!(
                "{name}: to be given up: the local log, of which it is not known what it holds alone ({why})"
            ));
        } else if report.has_log || report.was_clean {
            say(format_args!("{name}: {}", describe_replay(&report.replayed)));
        }
        let gives_up = given_up.tally.records() > 0 || given_up.uncounted.is_some();
        if !report.has_log && !report.was_clean && !gives_up {
            say(format_args!("{name}: {}", describe_lost_log(newest, goes_back)));
        }
    }
}
