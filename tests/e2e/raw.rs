//! The smallest NBD client: one request at a time, errors handed out, so that a dying server can be watched.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use crate::support::host::HANG;

/// A connection in transmission.
pub(crate) struct Raw {
    stream: UnixStream,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

impl Raw {
    /// Fixed newstyle, `NBD_OPT_EXPORT_NAME` of the default export, no zeroes (NBD protocol, "Haggling").
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(HANG))?;
        stream.read_exact(&mut [0; 18])?;
        stream.write_all(&[&3_u32.to_be_bytes()[..], b"IHAVEOPT", &1_u32.to_be_bytes(), &[0; 4]].concat())?;
        stream.read_exact(&mut [0; 10])?;
        Ok(Self { stream })
    }

    fn request(&mut self, command: u16, range: (u64, u32), payload: &[u8]) -> io::Result<()> {
        let header = [
            &0x2560_9513_u32.to_be_bytes()[..],
            &0_u16.to_be_bytes(),
            &command.to_be_bytes(),
            &7_u64.to_be_bytes(),
            &range.0.to_be_bytes(),
            &range.1.to_be_bytes(),
        ];
        self.stream.write_all(&[&header.concat(), payload].concat())?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        match u32::from_be_bytes(reply[4..8].try_into().expect("four bytes")) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno as i32)),
        }
    }

    /// Returns when the write is acknowledged.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.request(WRITE, (offset, bytes.len() as u32), bytes)
    }

    /// Returns when the flush is answered.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.request(FLUSH, (0, 0), b"")
    }

    /// Reads.
    pub(crate) fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.request(READ, (offset, length), b"")?;
        let mut bytes = vec![0; length as usize];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
