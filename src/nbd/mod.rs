//! The NBD protocol, server side, over a [`Device`]; knows nothing of volumes.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, cited section by section; extended
//! headers are from its branch `extension-ext-header`.
//!
//! A connection is one task: `handshake` settles the export and the framing, `transmission` then reads requests,
//! runs them on the device and writes replies. What stands between bytes and device is pure: `option` and
//! `request` decode and check, `framing` encodes.
//!
//! # Invariants
//! - No length from the network is allocated before it was compared with a limit; every queue has a bound ([`Limits`]).
//! - A device future that was polled once is polled to its end, whatever becomes of its client.
//!
//! # Not handled
//! TLS (NBD_OPT_STARTTLS is answered as unknown), NBD_CMD_RESIZE, contexts other than `base:allocation`, a payload on
//! NBD_CMD_BLOCK_STATUS. Memory is bounded for each connection, not for all of them together.

mod clients;
mod error;
mod execute;
mod export;
mod framing;
mod handshake;
mod input;
mod listener;
mod option;
mod output;
mod proto;
mod request;
mod server;
mod transmission;

use async_trait::async_trait;
use bytes::Bytes;

pub use clients::{Client, Clients};
pub use export::{Export, ExportError, Exports};
pub use listener::Listener;
pub use server::{Limits, Server};

/// What an export is, as a client learns it in the handshake. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Size of the device.
    pub size_bytes: u64,
    /// Smallest request that needs no read-modify-write; any offset and length works.
    pub preferred_block_bytes: u32,
    /// No writes, zeroes or trims.
    pub read_only: bool,
}

/// A run of the device as `base:allocation` reports it (proto.md, "Metadata querying").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceExtent {
    /// Bytes.
    pub length: u64,
    /// True: unallocated, and reads as zeros. False: data.
    pub hole: bool,
}

/// Why a request failed; the protocol's errno follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The data of this range cannot be had (EIO).
    #[error("input/output error")]
    Io,
    /// The device takes no writes (EPERM).
    #[error("read-only")]
    ReadOnly,
    /// The range is not within the device, or the request makes no sense (EINVAL).
    #[error("invalid request")]
    Invalid,
    /// What is to be written is not within the device (ENOSPC).
    #[error("beyond the end")]
    NoSpace,
    /// The device takes no request any more (ESHUTDOWN).
    #[error("shutting down")]
    Shutdown,
    /// Cannot be done quickly, or at all (ENOTSUP).
    #[error("not supported")]
    Unsupported,
}

/// A block device of bytes. Any offset and length within the size; the server has checked that the range is inside
/// [`Device::info`] and more than zero bytes long.
///
/// A future that is ready at its first poll costs the server no task: implementations answer at once from memory
/// where they can. Requests run concurrently; what overlaps has no order until it is answered. A future that has been
/// polled is polled to its end, also when its client is gone. Reads that wait are tasks of their own; writes, zeroes,
/// trims and flushes that wait are polled by their connection, so they should do little but wait from then on.
#[async_trait]
pub trait Device: Send + Sync + 'static {
    /// What the device is now; the size may change between calls.
    fn info(&self) -> DeviceInfo;
    /// Reads `length` bytes from `offset`: parts in order whose lengths add up to `length`.
    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, DeviceError>;
    /// Writes. On `Ok` every later read sees it; with `fua` it is durable as after a flush.
    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError>;
    /// Makes a range read as zeros; `allocate` asks that space stay reserved (NBD_CMD_FLAG_NO_HOLE).
    async fn zero(&self, offset: u64, length: u64, allocate: bool, fua: bool) -> Result<(), DeviceError>;
    /// Says that the range's content is not needed; it reads as zeros afterwards.
    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), DeviceError>;
    /// On `Ok` every write answered before the call, on any connection, is durable.
    async fn flush(&self) -> Result<(), DeviceError>;
    /// Brings a range into the cache (NBD_CMD_CACHE).
    async fn cache(&self, offset: u64, length: u64) -> Result<(), DeviceError>;
    /// Describes a range from `offset`: extents in order, at most `count_max`, covering a non-empty prefix of it.
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        count_max: usize,
    ) -> Result<Vec<DeviceExtent>, DeviceError>;
}
