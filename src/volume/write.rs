//! The write path: range check, log, layer, acknowledgement.
//!
//! # Invariants
//! - A record gets its LSN and its place in the active layer in one step, under the state's lock: the order of the log
//!   is the order of the map.
//! - A write is answered when its record is in the log's file; what a read sees before that may still be lost.
//!
//! # Errors and retries
//! A full log makes writers wait for the next publish, for ever if need be; it is never an error. So does a bucket that is
//! as far behind as the user allows.

use std::ops::Range;

use bytes::Bytes;
use wal::{AppendError, Lsn};

use super::{
    core::Core,
    error::VolumeError,
    layer::{Content, Piece},
    log::RECORD_BYTES_MAX,
    record::{self, WRITE_HEAD_BYTES},
    settings::Durability,
    state::State,
    status::Waiting,
};

impl Core {
    /// Checks that a range lies within the volume.
    fn check_range(state: &State, range: &Range<u64>) -> Result<(), VolumeError> {
        if range.start < range.end && range.end <= state.size_bytes {
            return Ok(());
        }
        Err(VolumeError::OutOfRange { offset: range.start, end: range.end, size_bytes: state.size_bytes })
    }

    fn beyond(&self, offset: u64) -> VolumeError {
        VolumeError::OutOfRange { offset, end: u64::MAX, size_bytes: self.state().size_bytes }
    }

    /// Writes `data` at byte `offset`. On `Ok` every later read sees it.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        let length = data.len() as u64;
        let range = offset..offset.checked_add(length).ok_or_else(|| self.beyond(offset))?;
        if data.is_empty() {
            return Ok(());
        }
        // All of it first: of a write that is refused, no part may be there.
        Self::check_range(&self.state(), &range)?;
        let mut end = Lsn(0);
        for start in (0..data.len()).step_by(RECORD_BYTES_MAX) {
            let part = data.slice(start..data.len().min(start + RECORD_BYTES_MAX));
            end = self.append_write(offset + start as u64, part).await?;
        }
        self.log()?.wait_appended(end).await
    }

    async fn append_write(&self, offset: u64, data: Bytes) -> Result<Lsn, VolumeError> {
        let range = offset..offset + data.len() as u64;
        let (kind, head) = record::write_head(offset, self.env.clock.now_ms());
        let check = |state: &State| Self::check_range(state, &range);
        self.append(kind, &head, data.clone(), check, |core, state, appended| {
            let payload = core.payloads.payload(appended.lsn, appended.end, Some(data.clone()));
            let content = Content::Data(payload, 0);
            state.active.insert(Piece { start: range.start, end: range.end, content });
        })
        .await
    }

    /// Makes a range read as zeros: one record, whatever its length. On `Ok` every later read sees it.
    pub async fn zero(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        let end = offset.checked_add(length).ok_or_else(|| self.beyond(offset))?;
        let (kind, head) = record::zero_head(offset, length, self.env.clock.now_ms());
        let check = |state: &State| Self::check_range(state, &(offset..end));
        let lay = |_: &Self, state: &mut State, _| {
            state.active.insert(Piece { start: offset, end, content: Content::Zero });
        };
        let lsn = self.append(kind, &head, Bytes::new(), check, lay).await?;
        self.log()?.wait_appended(lsn).await
    }

    /// Appends one record and changes the state as it says, as one step, if `check` allows it in that step; waits while the
    /// log is full, or the bucket too far behind. `change` lays something onto the active layer.
    pub(super) async fn append(
        &self,
        kind: u8,
        head: &[u8],
        body: Bytes,
        check: impl Fn(&State) -> Result<(), VolumeError>,
        change: impl Fn(&Self, &mut State, wal::Appended),
    ) -> Result<Lsn, VolumeError> {
        debug_assert!(head.len() >= WRITE_HEAD_BYTES);
        let log = self.log()?;
        loop {
            // Registered before the attempt, so that no progress between the two is missed.
            let changed = log.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.try_append(kind, head, &body, &check, &change)? {
                Some(end) => return Ok(end),
                None => {
                    self.want_cut(log.appended());
                    changed.await;
                }
            }
        }
    }

    /// Whether the bucket would be further behind than it may be, with `bytes` more.
    fn is_too_far_behind(&self, state: &State, bytes: u64) -> bool {
        let too_old = self
            .settings
            .lag_time_max
            .is_some_and(|lag| state.unpublished_since().is_some_and(|since| since.elapsed() >= lag));
        let too_much = self.settings.lag_bytes_max.is_some_and(|lag| {
            let unpublished = state.unpublished_bytes();
            unpublished > 0 && unpublished + bytes > lag
        });
        too_old || too_much
    }

    fn try_append(
        &self,
        kind: u8,
        head: &[u8],
        body: &Bytes,
        check: &impl Fn(&State) -> Result<(), VolumeError>,
        change: &impl Fn(&Self, &mut State, wal::Appended),
    ) -> Result<Option<Lsn>, VolumeError> {
        let log = self.log()?;
        let mut state = self.state_mut();
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        if state.closing {
            return Err(VolumeError::Closed);
        }
        check(&state)?;
        // A log that failed says so below: nothing would ever end the waiting for it.
        if self.is_too_far_behind(&state, body.len() as u64) && log.progress().poisoned.is_none() {
            return Ok(None);
        }
        let appended = match log.append(kind, head, body.clone()) {
            Ok(appended) => appended,
            Err(AppendError::Full { .. }) => return Ok(None),
            Err(AppendError::Closed) => return Err(VolumeError::Closed),
            Err(AppendError::Poisoned(_)) => {
                drop(state);
                let error = log.failure();
                self.fail(error.clone());
                return Err(error);
            }
            Err(error @ AppendError::TooLarge { .. }) => return Err(VolumeError::Invalid(error.to_string())),
        };
        let before = state.active.data_bytes();
        change(self, &mut state, appended);
        state.end = appended.end;
        let first = state.active_since.is_none();
        if first {
            state.active_since = Some(tokio::time::Instant::now());
        }
        let target = self.settings.object_bytes;
        let filled = before < target && state.active.data_bytes() >= target;
        drop(state);
        if first || filled {
            self.cut_wanted.notify_one();
        }
        Ok(Some(appended.end))
    }

    /// On `Ok`, every write answered before the call is durable, as the volume's durability says.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        self.check()?;
        let Some(log) = &self.log else { return Ok(()) };
        match self.settings.durability {
            Durability::Local => log.sync(log.appended()).await,
            // Not the log's end: what the publisher notes there is never published itself.
            Durability::Remote => {
                let end = self.state().end;
                self.publish_to(end).await?;
                self.noted.tell_incomplete(Waiting::Flush)
            }
        }
    }

    /// Returns when everything below `lsn` is published.
    pub async fn publish_to(&self, lsn: Lsn) -> Result<(), VolumeError> {
        if self.published.reached() >= lsn {
            return Ok(());
        }
        self.want_cut(lsn);
        self.published.wait(lsn).await.map_err(|_| self.check().err().unwrap_or(VolumeError::Closed))
    }
}
