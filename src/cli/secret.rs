//! Where the password comes from: a file, a command, the environment, a terminal.

use std::{io::IsTerminal, path::PathBuf, process::Stdio};

use anyhow::Context;
use clap::Args;
use secrecy::SecretSlice;
use zeroize::Zeroizing;

use super::exit::{CliError, SECRET};
use crate::{format::header::Protection, seal::slot::Secret};

/// The environment variable that may hold the password.
const VARIABLE: &str = "S3BD_PASSWORD";

/// How the volume is unlocked. Without any of these, S3BD_PASSWORD is used, else the terminal is asked.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct SecretArgs {
    /// Read the password from this file; one line end after it does not belong to it.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Run this command with sh and take what it prints as the password.
    #[arg(long, value_name = "COMMAND")]
    password_command: Option<String>,
    /// The volume has no password: whoever reads the bucket reads the data.
    #[arg(long)]
    no_password: bool,
}

fn missing(text: &str) -> anyhow::Error {
    CliError { code: SECRET, text: text.to_owned() }.into()
}

impl SecretArgs {
    /// The secret for a new volume; a terminal is asked twice.
    pub(super) async fn choose(&self, name: &str) -> anyhow::Result<Secret> {
        if let Some(given) = self.given().await? {
            return Ok(given);
        }
        if !std::io::stdin().is_terminal() {
            return Err(missing(
                "a new volume needs a password: give it with --password-file, --password-command or S3BD_PASSWORD, or say \
                 --no-password",
            ));
        }
        let first = ask(format!("New password for {name}: "))?;
        let chosen = password(&first)?;
        let second = ask("Once more: ".to_owned())?;
        if *first != *second {
            return Err(missing("the two passwords differ: nothing was made"));
        }
        Ok(chosen)
    }

    /// The secret for a volume that is there.
    pub(super) async fn obtain(&self, name: &str, protection: Protection) -> anyhow::Result<Secret> {
        if let Some(given) = self.given().await? {
            return Ok(given);
        }
        match protection {
            Protection::Open => {
                Err(missing("this volume has no password: say --no-password to use it all the same"))
            }
            Protection::Secret if std::io::stdin().is_terminal() => {
                password(&ask(format!("Password for {name}: "))?)
            }
            Protection::Secret => Err(crate::volume::error::VolumeError::SecretNeeded.into()),
        }
    }

    async fn given(&self) -> anyhow::Result<Option<Secret>> {
        if self.no_password {
            return Ok(Some(Secret::Nothing));
        }
        if let Some(path) = &self.password_file {
            let bytes = Zeroizing::new(
                std::fs::read(path).with_context(|| format!("password file {}", path.display()))?,
            );
            return password(&bytes).map(Some);
        }
        if let Some(command) = &self.password_command {
            return password(&run(command).await?).map(Some);
        }
        match std::env::var_os(VARIABLE) {
            Some(value) => {
                use std::os::unix::ffi::OsStringExt;
                password(&Zeroizing::new(value.into_vec())).map(Some)
            }
            None => Ok(None),
        }
    }
}

fn ask(prompt: String) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let text = rpassword::prompt_password(prompt).context("cannot read the password from the terminal")?;
    Ok(Zeroizing::new(text.into_bytes()))
}

async fn run(command: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
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
fn password(bytes: &[u8]) -> anyhow::Result<Secret> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.is_empty() {
        return Err(missing("the password is empty"));
    }
    Ok(Secret::Password(SecretSlice::from(text.to_vec())))
}
