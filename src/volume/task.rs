//! Work beside a task that owns it.

use super::error::VolumeError;

/// Work under way that ends with the tenure: dropped, it stops at its next wait.
#[derive(Debug)]
pub(super) struct Task<T>(crate::task::Task<Result<T, VolumeError>>);

impl<T: Send + 'static> Task<T> {
    pub(super) fn spawn(work: impl Future<Output = Result<T, VolumeError>> + Send + 'static) -> Self {
        Self(crate::task::Task::spawn(work))
    }

    /// Its result; a panic in it goes on here.
    pub(super) async fn join(&mut self) -> Result<T, VolumeError> {
        self.0.join().await.unwrap_or(Err(VolumeError::Closed))
    }
}
