//! What a server offers by name.

use std::sync::Arc;

use async_trait::async_trait;

use super::Device;

/// A device under its name.
#[derive(Clone)]
pub struct Export {
    /// The name that clients are shown; at most 4096 bytes, no NUL (proto.md, "Conventions").
    pub name: String,
    /// Shown to people, by `nbdinfo` for one.
    pub description: String,
    /// What is served.
    pub device: Arc<dyn Device>,
}

/// Why an export cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// There is none of this name.
    #[error("no such export")]
    Unknown,
    /// There is one, and it cannot be opened now.
    #[error("the export cannot be opened now")]
    Unavailable,
    /// Nothing is opened any more.
    #[error("the server is shutting down")]
    Shutdown,
}

/// The exports of a server; may change while it runs.
#[async_trait]
pub trait Exports: Send + Sync + 'static {
    /// The names to show in a list.
    async fn list(&self) -> Vec<String>;
    /// The export of a name, opened if need be; the empty name is the default export. The client waits, within
    /// [`Limits::handshake_time_max`](super::Limits::handshake_time_max).
    ///
    /// # Errors
    /// The client is told, and may ask for another.
    async fn find(&self, name: &str) -> Result<Export, ExportError>;
}

/// One export alone, found by its name and as the default.
#[async_trait]
impl Exports for Export {
    async fn list(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    async fn find(&self, name: &str) -> Result<Export, ExportError> {
        if name.is_empty() || name == self.name { Ok(self.clone()) } else { Err(ExportError::Unknown) }
    }
}
