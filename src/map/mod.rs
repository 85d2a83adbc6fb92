//! Paged copy-on-write maps: from block to place, and from object number to what is known of it.
//!
//! # Overview
//! A map is a radix tree of pages (`format::page`), each sealed as a frame of an object like any data. Pages never
//! change: a checkpoint writes new ones for what changed and a new root. Between checkpoints the changes live in a
//! [`delta::Delta`], in memory, rebuilt at open from the indexes of the objects that the manifest lists.
//!
//! # Invariants
//! - What a delta says of a block hides what the tree below it says.
//! - An absent page, or a block that no leaf names, was never written: it reads as zeros.
//! - Nothing here is proportional to the volume's size; work follows what is mapped and what changed.

pub mod compare;
pub mod delta;
pub mod extents;
pub mod objects;
pub mod snapshots;
pub mod tree;
