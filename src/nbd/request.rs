//! Requests: decoded from their headers, then checked against the export; pure. Source: proto.md, "Request message",
//! "Request types", "Command flags", "Error values".

use bytes::Buf;

use super::{
    DeviceInfo,
    error::ConnectionError,
    framing::{Framing, Refusal},
    proto::{EXTENDED_REQUEST_MAGIC, Errno, PAYLOAD_BYTES_MAX, REQUEST_MAGIC, command, command_flag as flag},
};

/// A request's header as it was sent; only the magic has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    /// Of what the request is about, in bytes.
    pub(super) length: u64,
    /// Bytes that follow the header.
    pub(super) payload_bytes: u64,
}

/// What a request asks of the device: valid for its size, and more than zero bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Zero bytes of anything.
    Nothing,
    Read {
        offset: u64,
        length: u32,
    },
    Write {
        offset: u64,
        length: u32,
        fua: bool,
    },
    Zero {
        offset: u64,
        length: u64,
        allocate: bool,
        fast: bool,
        fua: bool,
    },
    Trim {
        offset: u64,
        length: u64,
        fua: bool,
    },
    Flush,
    Cache {
        offset: u64,
        length: u64,
    },
    Status {
        offset: u64,
        length: u64,
        one: bool,
    },
}

impl Operation {
    /// Whether, if it has to wait, it waits for data to come from somewhere.
    pub(super) fn fetches(self) -> bool {
        matches!(self, Operation::Read { .. } | Operation::Status { .. } | Operation::Cache { .. })
    }
}

impl Framing {
    /// Length of a request's header.
    pub(super) fn request_bytes(self) -> usize {
        match self {
            Framing::Simple | Framing::Structured => 28,
            Framing::Extended => 32,
        }
    }

    /// Decodes a header of [`Framing::request_bytes`] bytes.
    ///
    /// # Errors
    /// Another magic: nobody knows where the next request begins, so the connection has to end.
    pub(super) fn decode_request(self, mut header: &[u8]) -> Result<Request, ConnectionError> {
        assert_eq!(header.len(), self.request_bytes());
        let extended = self == Framing::Extended;
        let magic = header.get_u32();
        if magic != if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC } {
            return Err(ConnectionError::RequestMagic { found: magic });
        }
        let (flags, command) = (header.get_u16(), header.get_u16());
        let (cookie, offset) = (header.get_u64(), header.get_u64());
        let length = if extended { header.get_u64() } else { u64::from(header.get_u32()) };
        // A write has to set NBD_CMD_FLAG_PAYLOAD_LEN with extended headers; qemu 10 does not, and sends its payload.
        let has_payload = command == command::WRITE || (extended && flags & flag::PAYLOAD_LEN != 0);
        let payload_bytes = if has_payload { length } else { 0 };
        Ok(Request { flags, command, cookie, offset, length, payload_bytes })
    }
}

/// What was agreed in the handshake and decides on requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) framing: Framing,
    /// `base:allocation` was selected for this export.
    pub(super) allocation_context: bool,
}

impl Request {
    /// Checks in this order: command, flags, what was negotiated, permission, length, range.
    ///
    /// # Errors
    /// What the client is to be told; the connection goes on.
    pub(super) fn check(&self, info: DeviceInfo, terms: Terms) -> Result<Operation, Refusal> {
        self.check_flags(terms)?;
        let modifies = matches!(self.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if modifies && info.read_only {
            return Err(Refusal { errno: Errno::Perm, message: "the export is read-only" });
        }
        if self.command == command::FLUSH {
            return if (self.offset, self.length) == (0, 0) {
                Ok(Operation::Flush)
            } else {
                Err(invalid("a flush has neither offset nor length"))
            };
        }
        self.check_range(info.size_bytes)?;
        Ok(self.operation())
    }

    fn check_flags(&self, terms: Terms) -> Result<(), Refusal> {
        // "Command flags": NBD_CMD_FLAG_FUA is accepted on all commands.
        let allowed = flag::FUA
            | match self.command {
                command::READ if terms.framing != Framing::Simple => flag::DF,
                command::WRITE if terms.framing == Framing::Extended => flag::PAYLOAD_LEN,
                command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
                command::BLOCK_STATUS => flag::REQ_ONE,
                command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => 0,
                _ => return Err(invalid("unknown command")),
            };
        if self.flags & !allowed != 0 {
            return Err(invalid("a flag that is unknown or not for this command"));
        }
        if self.command == command::BLOCK_STATUS && !terms.allocation_context {
            return Err(invalid("no metadata context was negotiated"));
        }
        Ok(())
    }

    fn check_range(&self, size_bytes: u64) -> Result<(), Refusal> {
        let carries_data = matches!(self.command, command::READ | command::WRITE);
        if carries_data && self.length > u64::from(PAYLOAD_BYTES_MAX) {
            return Err(invalid("longer than the maximum payload"));
        }
        if self.offset.checked_add(self.length).is_none_or(|end| end > size_bytes) {
            let grows = matches!(self.command, command::WRITE | command::WRITE_ZEROES);
            let errno = if grows { Errno::NoSpace } else { Errno::Invalid };
            return Err(Refusal { errno, message: "beyond the end of the export" });
        }
        if self.length == 0 && self.command == command::BLOCK_STATUS {
            return Err(invalid("block status of nothing"));
        }
        Ok(())
    }

    /// What a request that passed the checks asks for.
    fn operation(&self) -> Operation {
        let Request { offset, length, .. } = *self;
        let has = |bit: u16| self.flags & bit != 0;
        let fua = has(flag::FUA);
        match self.command {
            _ if length == 0 => Operation::Nothing,
            command::READ => Operation::Read { offset, length: length as u32 },
            command::WRITE => Operation::Write { offset, length: length as u32, fua },
            command::TRIM => Operation::Trim { offset, length, fua },
            command::CACHE => Operation::Cache { offset, length },
            command::BLOCK_STATUS => Operation::Status { offset, length, one: has(flag::REQ_ONE) },
            command::WRITE_ZEROES => Operation::Zero {
                offset,
                length,
                allocate: has(flag::NO_HOLE),
                fast: has(flag::FAST_ZERO),
                fua,
            },
            other => unreachable!("command {other} passed the checks"),
        }
    }
}

fn invalid(message: &'static str) -> Refusal {
    Refusal { errno: Errno::Invalid, message }
}

#[cfg(test)]
mod tests;
