//! The engine against simulated disks and stores.

mod bad_days;
mod basic;
mod bucket_prefix;
mod clones;
mod cost;
mod crash_points;
mod damaged_log;
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
mod resize;
mod rig;
mod snapshots;
mod status;
mod store_faults;
mod two_writers;
mod warnings;
