//! Exit codes, and the one line that an error becomes.

use std::process::ExitCode;

use crate::{
    control::{Answer, RefusalKind, client::ClientError},
    format::local::LOG,
    store::{ErrorKind, StoreError},
    volume::error::{Kind, VolumeError},
};

/// Done.
pub(super) const DONE: u8 = 0;
/// Failed for another reason than those below.
const FAILED: u8 = 1;
/// The command line makes no sense.
pub(super) const USAGE: u8 = 2;
/// No such volume or bucket.
const NOT_FOUND: u8 = 3;
/// Wrong or missing password.
pub(super) const SECRET: u8 = 4;
/// Another process or host has it.
pub(super) const IN_USE: u8 = 5;
/// The store cannot be reached, or refuses.
const STORE: u8 = 6;
/// Stored data is damaged.
pub(super) const DAMAGED: u8 = 7;
/// The local log and the bucket went different ways.
pub(super) const DIVERGED: u8 = 8;

/// No server on this host has the volume open.
const NOT_OPEN: u8 = 9;

/// An error of the command line itself, with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct CliError {
    pub(super) code: u8,
    pub(super) text: String,
}

/// Wrong usage that the parser cannot see.
pub(super) fn usage(text: impl Into<String>) -> anyhow::Error {
    CliError { code: USAGE, text: text.into() }.into()
}

/// A server answered another question than was asked.
pub(super) fn nonsense(answer: &Answer) -> anyhow::Error {
    ClientError::Nonsense(format!("{answer:?}")).into()
}

/// No server on this host has the volume open.
pub(super) fn not_open(text: impl Into<String>) -> anyhow::Error {
    CliError { code: NOT_OPEN, text: text.into() }.into()
}

/// Prints the error and gives its exit code.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    super::tell(format!("{error:#}{}", advice(error)));
    ExitCode::from(code(error))
}

/// What to run about it, where an error does not say it itself.
fn advice(error: &anyhow::Error) -> &'static str {
    let found = error.chain().find_map(|cause| cause.downcast_ref::<VolumeError>());
    match found {
        Some(error) if error.is_of_line() => {
            " (s3bd recover --dry-run says which epoch is whole and what going back to it loses; s3bd fsck, what else is hit)"
        }
        Some(VolumeError::Damaged { name, .. }) if name == LOG => {
            " (the identity of the local log, in the state directory, and its copy cannot be used; s3bd recover --discard \
             gives up what the log holds)"
        }
        _ => "",
    }
}

fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<CliError>() {
            return error.code;
        }
        if let Some(ClientError::Refused(refusal)) = cause.downcast_ref::<ClientError>() {
            return refusal_code(refusal.kind);
        }
        if let Some(error) = cause.downcast_ref::<VolumeError>() {
            return volume_code(error);
        }
        if let Some(error) = cause.downcast_ref::<StoreError>() {
            return store_code(error);
        }
    }
    FAILED
}

fn volume_code(error: &VolumeError) -> u8 {
    match error {
        VolumeError::Store(error) => store_code(error),
        VolumeError::NoVolume | VolumeError::Unfinished => NOT_FOUND,
        VolumeError::WrongSecret { .. }
        | VolumeError::NoFittingSlot { .. }
        | VolumeError::SecretNeeded
        | VolumeError::SecretNotNeeded => SECRET,
        VolumeError::OldSlotLeft { error, .. } => volume_code(error),
        VolumeError::InUse { .. } | VolumeError::Locked { .. } => IN_USE,
        VolumeError::Diverged { .. } | VolumeError::RolledBack { .. } | VolumeError::Fenced { .. } => {
            DIVERGED
        }
        _ if error.kind() == Kind::Corrupt => DAMAGED,
        _ => FAILED,
    }
}

fn refusal_code(kind: RefusalKind) -> u8 {
    match kind {
        RefusalKind::Fenced => DIVERGED,
        RefusalKind::Damaged => DAMAGED,
        RefusalKind::Closed => NOT_OPEN,
        RefusalKind::Invalid | RefusalKind::Unsupported | RefusalKind::Failed => FAILED,
    }
}

fn store_code(error: &StoreError) -> u8 {
    match error.kind {
        ErrorKind::NotFound if error.key.is_empty() => NOT_FOUND,
        ErrorKind::NotFound | ErrorKind::Short => DAMAGED,
        _ => STORE,
    }
}
