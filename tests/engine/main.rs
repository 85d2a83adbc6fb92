//! The engine against simulated disks and stores.

mod basic;
mod host;
mod model;
mod oracle;
mod rig;
