//! Why a connection ends otherwise than by NBD_CMD_DISC or NBD_OPT_ABORT; for the log, the client sees it close.

use std::{io, time::Duration};

use super::ExportError;

#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("client flags {flags:#x} hold a bit that was not offered")]
    ClientFlags { flags: u32 },
    #[error("option magic is {found:#x}")]
    OptionMagic { found: u64 },
    #[error("option {option} has {length_bytes} bytes of data")]
    OptionTooLarge { option: u32, length_bytes: u32 },
    #[error("export name of NBD_OPT_EXPORT_NAME is not a string")]
    ExportName,
    #[error("export {name:?} of NBD_OPT_EXPORT_NAME: {source}")]
    ExportNotFound { name: String, source: ExportError },
    #[error("the handshake did not go on for {limit:?}")]
    HandshakeTime { limit: Duration },
    #[error("request magic is {found:#x}")]
    RequestMagic { found: u32 },
    #[error("request carries {payload_bytes} bytes, too many to skip")]
    PayloadTooLarge { payload_bytes: u64 },
    #[error("closed by the client within a message")]
    Truncated,
    #[error("connection failed")]
    Io(#[from] io::Error),
}
