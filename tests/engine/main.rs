//! The engine against simulated disks and stores.

mod bad_days;
mod basic;
mod bucket_prefix;
mod collect;
mod cost;
mod crash_points;
mod ends;
mod host;
mod keys;
mod lag;
mod lessons;
mod model;
mod object_table;
mod oracle;
mod recovery;
mod rescue;
mod rig;
mod snapshots;
mod status;
mod store_faults;
mod two_writers;
