//! The engine: volumes.

pub mod bucket;
pub mod env;
pub mod error;
pub mod layer;
pub mod object;
pub mod payload;
