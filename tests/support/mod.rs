//! What several integration tests share.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod disk;
pub mod fixture;
pub mod garage;
pub mod host;
pub mod random;
pub mod run;
pub mod s3_bucket;
pub mod s3_server;
