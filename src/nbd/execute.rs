//! Runs an operation on the device, and makes protocol of what comes back.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Device, DeviceError, DeviceExtent,
    framing::{Answer, Refusal},
    proto::Errno,
    request::Operation,
};

/// Extents of one reply: 128 KiB of them. proto.md, "Structured reply types", has at most 2^20.
const EXTENTS_COUNT_MAX: usize = 1 << 14;
/// Written in place of NBD_CMD_WRITE_ZEROES where the device cannot zero.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Runs `operation`; `payload` is what a write writes.
pub(super) async fn execute(
    device: Arc<dyn Device>,
    operation: Operation,
    payload: Bytes,
) -> Result<Answer, Refusal> {
    let result = match operation {
        Operation::Nothing => Ok(()),
        Operation::Read { offset, length } => return read(&*device, offset, length).await,
        Operation::Status { offset, length, one } => return status(&*device, offset, length, one).await,
        Operation::Write { offset, fua, .. } => device.write(offset, payload, fua).await,
        Operation::Flush => device.flush().await,
        Operation::Zero { offset, length, allocate, fast, fua } => {
            match device.zero(offset, length, allocate, fua).await {
                // "NBD_CMD_WRITE_ZEROES": fails for not being fast only where the client asked for fast.
                Err(DeviceError::Unsupported) if !fast => write_zeros(&*device, offset, length, fua).await,
                Err(DeviceError::Unsupported) => {
                    return Err(Refusal { errno: Errno::NotSupported, message: "no faster than a write" });
                }
                result => result,
            }
        }
        // "NBD_CMD_TRIM", "NBD_CMD_CACHE": hints, which a server may leave without effect.
        Operation::Trim { offset, length, fua } => {
            device.trim(offset, length, fua).await.or_else(allow_unsupported)
        }
        Operation::Cache { offset, length } => device.cache(offset, length).await.or_else(allow_unsupported),
    };
    result.map(|()| Answer::Done).map_err(refusal)
}

async fn read(device: &dyn Device, offset: u64, length: u32) -> Result<Answer, Refusal> {
    let parts = device.read(offset, length).await.map_err(refusal)?;
    let found: usize = parts.iter().map(Bytes::len).sum();
    if found != length as usize {
        tracing::error!(offset, length, found, "the device read a length that was not asked for");
        return Err(refusal(DeviceError::Io));
    }
    Ok(Answer::Data(parts))
}

async fn status(device: &dyn Device, offset: u64, length: u64, one: bool) -> Result<Answer, Refusal> {
    let count_max = if one { 1 } else { EXTENTS_COUNT_MAX };
    let extents = device.extents(offset, length, count_max).await.map_err(refusal)?;
    let extents = clip(extents, length, count_max);
    if extents.is_empty() {
        tracing::error!(offset, length, "the device described nothing");
        return Err(refusal(DeviceError::Io));
    }
    Ok(Answer::Extents(extents))
}

/// Joins neighbours that are alike ("NBD_CMD_BLOCK_STATUS" wants them to differ), and cuts off what was not asked for.
fn clip(extents: Vec<DeviceExtent>, length: u64, count_max: usize) -> Vec<DeviceExtent> {
    let mut clipped: Vec<DeviceExtent> = Vec::with_capacity(extents.len().min(count_max));
    let mut left = length;
    for DeviceExtent { length, hole } in extents {
        let length = length.min(left);
        left -= length;
        let count = clipped.len();
        match clipped.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.hole == hole => last.length += length,
            _ if count == count_max => break,
            _ => clipped.push(DeviceExtent { length, hole }),
        }
    }
    clipped
}

async fn write_zeros(device: &dyn Device, offset: u64, length: u64, fua: bool) -> Result<(), DeviceError> {
    let mut done = 0;
    while done < length {
        let step = (length - done).min(ZEROS.len() as u64);
        device.write(offset + done, Bytes::from_static(&ZEROS[..step as usize]), fua).await?;
        done += step;
    }
    Ok(())
}

fn allow_unsupported(error: DeviceError) -> Result<(), DeviceError> {
    if error == DeviceError::Unsupported { Ok(()) } else { Err(error) }
}

/// "Error values". NBD_ENOTSUP is left to fast zeroes, as the section asks.
pub(super) fn refusal(error: DeviceError) -> Refusal {
    let (errno, message) = match error {
        DeviceError::Io => (Errno::Io, "the data cannot be had"),
        DeviceError::ReadOnly => (Errno::Perm, "the device takes no writes"),
        DeviceError::Invalid => (Errno::Invalid, "the device refuses the request"),
        DeviceError::NoSpace => (Errno::NoSpace, "beyond the end of the export"),
        DeviceError::Shutdown => (Errno::Shutdown, "the device is shutting down"),
        DeviceError::Unsupported => (Errno::Invalid, "the device cannot do this"),
    };
    Refusal { errno, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(length: u64, hole: bool) -> DeviceExtent {
        DeviceExtent { length, hole }
    }

    #[test]
    fn extents_are_joined_and_cut_to_the_request() {
        let given =
            vec![extent(10, true), extent(0, false), extent(5, true), extent(7, false), extent(9, true)];
        assert_eq!(clip(given.clone(), 20, 9), [extent(15, true), extent(5, false)]);
        assert_eq!(clip(given.clone(), 100, 2), [extent(15, true), extent(7, false)]);
        assert_eq!(clip(given.clone(), 3, 1), [extent(3, true)]);
        assert_eq!(clip(vec![extent(u64::MAX, true), extent(u64::MAX, true)], 9, 9), [extent(9, true)]);
        assert_eq!(clip(vec![], 3, 1), []);
        assert_eq!(clip(given, 100, 9).iter().map(|e| e.length).sum::<u64>(), 31);
    }
}
