//! Collecting garbage, decided: which objects nobody needs, which are worth moving, and what is still to be looked at.
//!
//! # Overview
//! The object table says of each object when it was born and from which checkpoint on the maps name nothing in it. A
//! manifest and a snapshot are a pair of epochs, so whether anybody needs an object follows from numbers alone:
//! [`horizon`] says how far back manifests are kept, [`judge`] looks at the entries of one leaf, [`work`] knows which leaves
//! are worth a look, [`budget`] how much may be moved. Nothing here does anything: `volume/collect/` does.
//!
//! # Invariants
//! - An object is garbage once it died at or before the horizon, and no snapshot needs it. Whatever is pinned later needs
//!   nothing that is dead by then, so a decision stays right for ever.

pub mod budget;
pub mod horizon;
pub mod judge;
pub mod work;
