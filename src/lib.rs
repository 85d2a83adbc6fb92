//! s3bd: a network block device whose disk lives in an object store.
//!
//! `docs/architecture.md` says how the parts fit; `docs/format.md` describes every stored byte.

pub mod cache;
pub mod cli;
pub mod control;
pub mod format;
pub mod fsck;
pub mod gc;
pub mod map;
pub mod nbd;
pub mod seal;
pub mod store;
mod task;
pub mod volume;
