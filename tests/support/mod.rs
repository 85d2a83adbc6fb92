//! What several integration tests share.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod garage;
pub mod s3_bucket;
pub mod s3_server;
