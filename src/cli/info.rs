//! `s3bd info`
