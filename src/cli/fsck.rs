//! `s3bd fsck`: checks a volume in its bucket, with the exit codes of fsck(8).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{
    exit,
    repair::{Mode, Outcome, repair},
    say,
    secret::SecretArgs,
    size::show_size,
    target::Target,
    tell,
};
use crate::{
    fsck::{Finding, Level, Options, Progress, Remedy, Report, Sample, Severity, Stage, check_store, seen},
    seal::slot::Secret,
    volume::{bucket::Bucket, env::Env, error::VolumeError, tally::count},
};

/// Errors were corrected (fsck(8)); with [`ERRORS_LEFT`], some were.
const CORRECTED: u8 = 1;
/// Errors were left uncorrected (fsck(8)).
const ERRORS_LEFT: u8 = 4;
/// The check itself could not be made (fsck(8)).
const OPERATIONAL: u8 = 8;
/// Wrong usage (fsck(8)).
pub(super) const USAGE: u8 = 16;

/// Check a volume in its bucket.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing is wrong, 1 all damage was mended, 4 damage was found and is left, 5 some of it was \
                  mended, 8 the check or the repair could not be made, 16 wrong usage."
)]
pub(super) struct Fsck {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Only what is small: header, keys, claims, manifests, and the pages of the maps.
    #[arg(long, conflicts_with = "read_data")]
    quick: bool,
    /// Read, decrypt and unpack the data too: all of it, or a random sample such as 5%.
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, default_missing_value = "100%", require_equals = true, value_parser = parse_percent)]
    read_data: Option<f64>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Mend what was found: write it anew from a whole copy, in the bucket or in this host's cache, and mark as unreadable
    /// what has none. Shows its plan and asks first; needs the volume for itself.
    #[arg(long)]
    repair: bool,
    /// Show what --repair would do, and change nothing.
    #[arg(long, requires = "repair", conflicts_with = "yes")]
    dry_run: bool,
    /// Carry the plan of --repair out without asking.
    #[arg(long, requires = "repair")]
    yes: bool,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(flatten)]
    outcome: Option<&'a Outcome>,
}

/// What a check needs of the outside, for a repair after it.
struct Checked {
    env: Env,
    secret: Secret,
    options: Options,
    report: Report,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    number
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .ok_or_else(|| "write a percentage such as 5%".to_owned())
}

impl Fsck {
    pub(super) async fn run(self) -> anyhow::Result<u8> {
        match self.check_and_repair().await {
            Ok(code) => Ok(code),
            Err(error) => {
                tell(format!("{error:#}"));
                let usage =
                    error.downcast_ref::<exit::CliError>().is_some_and(|error| error.code == exit::USAGE);
                Ok(if usage { USAGE } else { OPERATIONAL })
            }
        }
    }

    async fn check_and_repair(&self) -> anyhow::Result<u8> {
        if self.json && self.repair && !self.yes && !self.dry_run {
            return Err(exit::usage("--json with --repair wants --yes or --dry-run: there is nobody to ask"));
        }
        let checked = self.check().await?;
        let report = &checked.report;
        if !self.json {
            self.say(report);
        }
        let outcome = if self.repair {
            let Checked { env, secret, options, .. } = &checked;
            let mode = Mode { dry_run: self.dry_run, yes: self.yes, json: self.json };
            Some(repair(env, secret, &self.target.name(), report, options, mode).await?)
        } else {
            None
        };
        if self.json {
            say(serde_json::to_string_pretty(&Printed { report, outcome: outcome.as_ref() })?);
        } else if let Some(after) = outcome.as_ref().and_then(|outcome| outcome.after.as_ref()) {
            say(format_args!("{}: after the repair:", self.target.name()));
            self.say(after);
        }
        Ok(match outcome.as_ref().and_then(|outcome| outcome.after.as_ref()) {
            Some(after) if after.is_sound() => CORRECTED,
            Some(_) => CORRECTED | ERRORS_LEFT,
            None if report.is_sound() => exit::DONE,
            None => ERRORS_LEFT,
        })
    }

    async fn check(&self) -> anyhow::Result<Checked> {
        let name = self.target.name();
        let env = self.target.outside().await?.env;
        let mut behind = None;
        let secret = match Bucket::header(&*env.store).await {
            Ok((header, _)) => {
                let secret = self.secret.obtain(&name, header.protection).await?;
                // Only where there is something to compare with: it costs another derivation.
                if env.local.exists(header.volume)?
                    && let Ok(bucket) = Bucket::unlock(Arc::clone(&env.store), &secret).await
                {
                    behind = self.compare_with_seen(&env, &bucket).await;
                }
                secret
            }
            // A finding of the check itself: any secret will do.
            Err(VolumeError::Damaged { .. } | VolumeError::HeaderMissing) => {
                crate::seal::slot::Secret::Nothing
            }
            Err(error) => return Err(error).context(name),
        };
        let level = match self.read_data {
            Some(percent) => Level::ReadData(Sample { percent, seed: seed(&env) }),
            None if self.quick => Level::Quick,
            None => Level::Default,
        };
        let options = Options { level, ..Options::default() };
        let bar = Bar::new();
        let report = check_store(Arc::clone(&env.store), &secret, &options, &bar).await;
        bar.clear();
        let mut report = report.context(name)?;
        behind.into_iter().for_each(|finding| report.add(finding));
        Ok(Checked { env, secret, options, report })
    }

    async fn compare_with_seen(&self, env: &Env, bucket: &Bucket) -> Option<Finding> {
        match seen::compare(env, bucket).await {
            Ok(behind) => behind,
            Err(error @ VolumeError::SeenDamaged { .. }) => {
                tell(format_args!("{}: warning: {error}", self.target.name()));
                None
            }
            // Whatever else is wrong, the check finds.
            Err(error) => {
                tracing::debug!(%error, "not compared with what this host has seen");
                None
            }
        }
    }

    fn say(&self, report: &Report) {
        let name = self.target.name();
        for finding in &report.findings {
            say_finding(&name, finding);
        }
        let omitted = report.omitted;
        if omitted.errors + omitted.warnings + omitted.notes > 0 {
            say(format_args!(
                "{name}: and {}, {}, {} more",
                count(omitted.errors, "error"),
                count(omitted.warnings, "warning"),
                count(omitted.notes, "note")
            ));
        }
        say(format_args!("{name}: {}", summary(report)));
        let mut remedies: BTreeSet<Remedy> = report.findings.iter().map(Finding::remedy).collect();
        if remedies.contains(&Remedy::Scan) {
            // There is none to go back to.
            remedies.remove(&Remedy::Recover);
        }
        for remedy in remedies.into_iter().filter(|remedy| *remedy > Remedy::Nothing) {
            let findings = report.findings.iter().filter(|finding| finding.remedy() == remedy).count();
            say(format_args!("{name}: {}: {remedy}", count(findings as u64, "finding")));
        }
    }
}

fn say_finding(name: &str, finding: &Finding) {
    match finding.severity() {
        Severity::Note => tracing::info!("{name}: {finding}"),
        severity => say(format_args!("{name}: {severity}: {finding}")),
    }
}

fn summary(report: &Report) -> String {
    let counts = &report.counts;
    let mut text = match (report.epoch, report.generation) {
        (Some(epoch), Some(generation)) => format!("epoch {epoch} of generation {generation}: "),
        _ => String::new(),
    };
    text += &format!(
        "{}, {}, {} ({})",
        count(counts.manifests, "manifest"),
        count(counts.pages, "page"),
        count(counts.objects, "object"),
        show_size(counts.object_bytes)
    );
    if counts.frames > 0 {
        text += &format!(", {} read ({})", count(counts.frames, "frame"), show_size(counts.frame_bytes));
    }
    if counts.strays > 0 {
        text +=
            &format!("; {} ({}) in no list", count(counts.strays, "object"), show_size(counts.stray_bytes));
    }
    text + match (report.is_sound(), counts.frames) {
        (true, 0) if counts.objects > 0 => ": clean; the data itself was not read (--read-data does)",
        (true, _) => ": clean",
        (false, _) => ": DAMAGED",
    }
}

fn seed(env: &crate::volume::env::Env) -> u64 {
    u64::from_le_bytes(crate::volume::env::random_bytes(&*env.random))
}

/// A bar on a terminal; nothing elsewhere.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// Takes it off the terminal.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn begin(&self, stage: Stage, total: Option<u64>) {
        let template = match total {
            Some(_) => "{prefix} [{bar:30}] {human_pos}/{human_len}, {per_sec}, {eta} left",
            None => "{prefix} {spinner} {human_pos}, {per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.reset();
        self.0.set_prefix(stage.title());
        match total {
            Some(total) => self.0.set_length(total),
            None => self.0.unset_length(),
        }
    }

    fn advance(&self, units: u64) {
        self.0.inc(units);
    }
}
