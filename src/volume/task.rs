//! Work beside a task that owns it.

use tokio::task::JoinHandle;

use super::error::VolumeError;

/// Work under way that ends with the tenure: dropped, it stops at its next wait.
#[derive(Debug)]
pub(super) struct Task<T>(JoinHandle<Result<T, VolumeError>>);

impl<T: Send + 'static> Task<T> {
    pub(super) fn spawn(work: impl Future<Output = Result<T, VolumeError>> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    /// Its result; a panic in it goes on here.
    pub(super) async fn join(&mut self) -> Result<T, VolumeError> {
        match (&mut self.0).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(VolumeError::Closed),
            },
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
