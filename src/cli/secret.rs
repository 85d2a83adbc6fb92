//! Where the secret comes from: a file, a command, the environment, a terminal.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context;
use clap::Args;
use secrecy::SecretSlice;
use zeroize::Zeroizing;

use super::exit::{CliError, SECRET};
use crate::{
    format::header::Protection,
    seal::{
        recovery::{RecoveryKey, Typed},
        slot::Secret,
    },
};

/// The environment variable that may hold the password.
const VARIABLE: &str = "S3BD_PASSWORD";

/// A key file has at least as many bytes as a key: nothing makes one of fewer hard to guess.
const KEY_FILE_BYTES_MIN: usize = 32;
/// A larger file is no key file; it may have no end.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

/// How the volume is unlocked. Without any of these, S3BD_PASSWORD is used, else the terminal is asked.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct SecretArgs {
    /// Read the password, or a recovery key, from this file; one line end after it does not belong to it.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Run this command with sh and take what it prints as the password, or as a recovery key.
    #[arg(long, value_name = "COMMAND")]
    password_command: Option<String>,
    /// Unlock with the bytes of this file, at least 32 of them.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The volume has no password: whoever reads the bucket reads the data.
    #[arg(long)]
    no_password: bool,
}

pub(super) fn missing(text: &str) -> anyhow::Error {
    CliError { code: SECRET, text: text.to_owned() }.into()
}

impl SecretArgs {
    /// The secret for a new volume; a terminal is asked twice.
    pub(super) async fn choose(&self, name: &str) -> anyhow::Result<Secret> {
        if let Some(given) = self.given(chosen).await? {
            return Ok(given);
        }
        if !std::io::stdin().is_terminal() {
            return Err(missing(
                "a new volume needs a password: give it with --password-file, --password-command or S3BD_PASSWORD, or a key \
                 file with --key-file, or say --no-password",
            ));
        }
        ask_twice(name)
    }

    /// The secret for a volume that is there.
    pub(super) async fn obtain(&self, name: &str, protection: Protection) -> anyhow::Result<Secret> {
        if let Some(given) = self.given(typed).await? {
            return Ok(given);
        }
        match protection {
            Protection::Open => {
                Err(missing("this volume has no password: say --no-password to use it all the same"))
            }
            Protection::Secret if std::io::stdin().is_terminal() => {
                typed(&ask(format!("Password for {name}: "))?)
            }
            Protection::Secret => Err(crate::volume::error::VolumeError::SecretNeeded.into()),
        }
    }

    /// The secret that the command line or the environment has; nobody is asked.
    pub(super) async fn find(&self) -> anyhow::Result<Option<Secret>> {
        self.given(typed).await
    }

    /// `read` makes a secret of a password's bytes.
    async fn given(&self, read: fn(&[u8]) -> anyhow::Result<Secret>) -> anyhow::Result<Option<Secret>> {
        if self.no_password {
            return Ok(Some(Secret::Nothing));
        }
        if let Some(path) = &self.key_file {
            return key_file(path).map(Some);
        }
        let bytes =
            password_bytes(self.password_file.as_deref(), self.password_command.as_deref(), VARIABLE)?;
        bytes.map(|bytes| read(&bytes)).transpose()
    }
}

/// The bytes that a file has, a command prints or a variable holds, in this order.
pub(super) fn password_bytes(
    file: Option<&Path>,
    command: Option<&str>,
    variable: &str,
) -> anyhow::Result<Option<Zeroizing<Vec<u8>>>> {
    if let Some(path) = file {
        let bytes = std::fs::read(path).with_context(|| format!("password file {}", path.display()))?;
        return Ok(Some(Zeroizing::new(bytes)));
    }
    if let Some(command) = command {
        return run(command).map(Some);
    }
    use std::os::unix::ffi::OsStringExt;
    Ok(std::env::var_os(variable).map(|value| Zeroizing::new(value.into_vec())))
}

/// The secret that the bytes of a file are.
pub(super) fn key_file(path: &Path) -> anyhow::Result<Secret> {
    use std::io::Read;
    let name = || format!("key file {}", path.display());
    let file = std::fs::File::open(path).with_context(name)?;
    // Room for all of it at once: to grow would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize + 1));
    file.take(KEY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(name)?;
    if bytes.len() < KEY_FILE_BYTES_MIN {
        let text = format!("{} has {} bytes: it needs {KEY_FILE_BYTES_MIN} at least", name(), bytes.len());
        return Err(missing(&text));
    }
    if bytes.len() as u64 > KEY_FILE_BYTES_MAX {
        return Err(missing(&format!("{} is larger than 1 MiB: this cannot be a key file", name())));
    }
    Ok(Secret::KeyFile(SecretSlice::from(bytes.to_vec())))
}

/// A new password from a terminal.
pub(super) fn ask_twice(name: &str) -> anyhow::Result<Secret> {
    let first = ask(format!("New password for {name}: "))?;
    let secret = chosen(&first)?;
    let second = ask("Once more: ".to_owned())?;
    if *first != *second {
        return Err(missing("the two passwords differ: nothing was changed"));
    }
    Ok(secret)
}

fn ask(prompt: String) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let text = rpassword::prompt_password(prompt).context("cannot read the password from the terminal")?;
    Ok(Zeroizing::new(text.into_bytes()))
}

fn run(command: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let output = std::process::Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit())
        .output()
        .context("password command")?;
    let printed = Zeroizing::new(output.stdout);
    if output.status.success() {
        return Ok(printed);
    }
    Err(missing(&format!("the password command ended with {}", output.status)))
}

/// One line end after a password does not belong to it.
fn line(bytes: &[u8]) -> anyhow::Result<&[u8]> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.is_empty() {
        return Err(missing("the password is empty"));
    }
    Ok(text)
}

/// The password or the recovery key that unlocks a volume.
fn typed(bytes: &[u8]) -> anyhow::Result<Secret> {
    let text = line(bytes)?;
    match RecoveryKey::read(text) {
        Typed::Key(key) => Ok(Secret::RecoveryKey(key)),
        Typed::Other => Ok(Secret::Password(SecretSlice::from(text.to_vec()))),
        Typed::Mistyped(groups) => {
            let groups: Vec<_> = groups.iter().map(usize::to_string).collect();
            let groups = groups.join(" and ");
            Err(missing(&format!(
                "this recovery key has a typing error: look at group {groups} of its eight"
            )))
        }
    }
}

/// A new password.
pub(super) fn chosen(bytes: &[u8]) -> anyhow::Result<Secret> {
    let text = line(bytes)?;
    match RecoveryKey::read(text) {
        Typed::Other => Ok(Secret::Password(SecretSlice::from(text.to_vec()))),
        // Typed later, it would be tried as a recovery key.
        Typed::Key(_) | Typed::Mistyped(_) => Err(missing(
            "this is a recovery key: take another password (s3bd key add --recovery-key makes new keys)",
        )),
    }
}
