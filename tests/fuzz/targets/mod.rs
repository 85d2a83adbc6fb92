//! What is done with arbitrary bytes, by cargo-fuzz and, on the corpus, by every run of the tests: one function for each
//! thing that somebody else may have written. Whatever decodes is encoded again and has to come out the same.

#![allow(dead_code, reason = "each program uses one of them")]

mod decoders;
mod nbd;

pub(crate) use decoders::{
    claim, header, index, local, log_record, log_segment, manifest, names, page, slot,
};
pub(crate) use nbd::{nbd_handshake, nbd_requests};
