//! The engine against simulated disks and stores.

mod bad_days;
mod basic;
mod bucket_prefix;
mod cost;
mod crash_points;
mod ends;
mod host;
mod model;
mod object_table;
mod oracle;
mod recovery;
mod rescue;
mod rig;
mod store_faults;
mod two_writers;
