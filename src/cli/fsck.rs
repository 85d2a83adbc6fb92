//! `s3bd fsck`
