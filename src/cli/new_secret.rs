//! A secret that is added to a volume: where it comes from, what it is called, what its derivation costs.

use std::{io::IsTerminal, path::PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use super::{
    exit,
    secret::{ask_twice, chosen, key_file, missing, password_bytes},
    size::{parse_size, show_size},
};
use crate::{
    format::slot::Argon2,
    seal::{recovery::RecoveryKey, slot::Secret},
    volume::env::{Env, random_bytes},
};

/// The environment variable that may hold the new password.
const VARIABLE: &str = "S3BD_NEW_PASSWORD";
/// Longest label, characters: it has to fit a line.
const LABEL_CHARS_MAX: usize = 64;

/// The new secret. Without any of these, S3BD_NEW_PASSWORD is used, else the terminal is asked.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct NewSecretArgs {
    /// Read the new password from this file; one line end after it does not belong to it.
    #[arg(long, value_name = "FILE", help_heading = "New secret")]
    new_password_file: Option<PathBuf>,
    /// Run this command with sh and take what it prints as the new password.
    #[arg(long, value_name = "COMMAND", help_heading = "New secret")]
    new_password_command: Option<String>,
    /// The bytes of this file, at least 32 random ones; lose no byte of it (head -c 32 /dev/urandom makes one).
    #[arg(long, value_name = "FILE", help_heading = "New secret")]
    new_key_file: Option<PathBuf>,
    /// Make a random key and show it once, to be written down; it can be typed wherever the password is asked for.
    #[arg(long, help_heading = "New secret")]
    pub(super) recovery_key: bool,
}

/// A secret that was chosen.
pub(super) struct Chosen {
    pub(super) secret: Secret,
    /// What it is called unless its owner calls it otherwise.
    pub(super) label: &'static str,
    /// To be shown, where it was made here.
    pub(super) shown: Option<Zeroizing<String>>,
}

impl NewSecretArgs {
    pub(super) fn choose(&self, name: &str, env: &Env) -> anyhow::Result<Chosen> {
        if self.recovery_key {
            let key = RecoveryKey::new(random_bytes(&*env.random));
            let shown = Some(key.text());
            return Ok(Chosen { secret: Secret::RecoveryKey(key), label: "recovery key", shown });
        }
        if let Some(path) = &self.new_key_file {
            return Ok(Chosen { secret: key_file(path)?, label: "key file", shown: None });
        }
        let (file, command) = (self.new_password_file.as_deref(), self.new_password_command.as_deref());
        let secret = match password_bytes(file, command, VARIABLE)? {
            Some(bytes) => chosen(&bytes)?,
            None if std::io::stdin().is_terminal() => ask_twice(name)?,
            None => {
                return Err(missing(
                    "no new secret: give one with --new-password-file, --new-password-command, S3BD_NEW_PASSWORD, \
                     --new-key-file or --recovery-key",
                ));
            }
        };
        Ok(Chosen { secret, label: "password", shown: None })
    }
}

/// What deriving a key from a password costs whoever tries one.
#[derive(Debug, Args)]
#[command(next_help_heading = "Derivation of keys from passwords (Argon2id)")]
pub(super) struct CostArgs {
    /// Memory for each try, up to 4 GiB.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64MiB")]
    kdf_memory: u64,
    /// Passes over that memory, up to 64.
    #[arg(long, value_name = "NUMBER", default_value_t = Argon2::RECOMMENDED.passes)]
    kdf_passes: u32,
    /// Lanes, up to 64.
    #[arg(long, value_name = "NUMBER", default_value_t = Argon2::RECOMMENDED.lanes)]
    kdf_lanes: u32,
}

impl CostArgs {
    pub(super) fn cost(&self) -> anyhow::Result<Argon2> {
        let memory_kib = u32::try_from(self.kdf_memory / 1024).unwrap_or(u32::MAX);
        let cost = Argon2 { memory_kib, passes: self.kdf_passes, lanes: self.kdf_lanes };
        if cost.is_bounded() {
            return Ok(cost);
        }
        Err(exit::usage(format!(
            "a derivation with --kdf-memory {}, --kdf-passes {} and --kdf-lanes {} cannot be: at most 4 GiB, and at least 8 \
             KiB a lane; 1 to 64 passes; 1 to 64 lanes",
            show_size(self.kdf_memory),
            self.kdf_passes,
            self.kdf_lanes
        )))
    }
}

/// Reads a label.
pub(super) fn parse_label(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().count() > LABEL_CHARS_MAX || text.chars().any(char::is_control) {
        return Err(format!("a label has 1 to {LABEL_CHARS_MAX} characters, on one line"));
    }
    Ok(text.to_owned())
}
