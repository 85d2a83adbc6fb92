//! The protocol's numbers, under the names that proto.md gives them ("Values" unless another section is named).

/// What the server says first ("Newstyle negotiation").
pub(super) const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// Opens the server's newstyle greeting and each option of the client ("Newstyle negotiation").
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Opens each reply to an option ("Fixed newstyle negotiation").
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Opens a compact request ("Request message").
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a request with extended headers ("Request message", extension-ext-header).
pub(super) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// "Simple reply message".
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// "Structured reply chunk message".
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// "Extended reply chunk message" (extension-ext-header).
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// A string, "Conventions": no longer than this.
pub(super) const STRING_BYTES_MAX: usize = 4096;
/// The payload that every server and client can be asked to handle ("Size constraints").
pub(super) const PAYLOAD_BYTES_MAX: u32 = 1 << 25;
/// The smallest preferred block that may be advertised ("Size constraints").
pub(super) const PREFERRED_BLOCK_BYTES_MIN: u32 = 512;

/// "Handshake flags" and "Client flags": the bits are the same.
pub(super) mod handshake_flag {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// "Transmission flags".
pub(super) mod transmission_flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// "Option types".
pub(super) mod option_type {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;
}

/// "Option reply types".
pub(super) mod option_reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub(crate) const ERR_INVALID: u32 = (1 << 31) + 3;
    pub(crate) const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub(crate) const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    pub(crate) const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    pub(crate) const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// The information types of NBD_REP_INFO ("Option reply types").
pub(super) mod info_type {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// "Request types".
pub(super) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// "Command flags".
pub(super) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// "Structured reply flags" and "Structured reply types".
pub(super) mod chunk {
    pub(crate) const FLAG_DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const BLOCK_STATUS_EXT: u16 = 6;
    pub(crate) const ERROR: u16 = (1 << 15) + 1;
}

/// "`base:allocation` metadata context".
pub(super) mod allocation {
    pub(crate) const NAME: &str = "base:allocation";
    /// Queries for all contexts of the namespace ("The `base:` metadata namespace").
    pub(crate) const WILDCARD: &str = "base:";
    /// The only context of a session, so any number does.
    pub(crate) const ID: u32 = 1;
    pub(crate) const STATE_HOLE: u32 = 1 << 0;
    pub(crate) const STATE_ZERO: u32 = 1 << 1;
}

/// "Error values".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Errno {
    Perm = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    NotSupported = 95,
    Shutdown = 108,
}
