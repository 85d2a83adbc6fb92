//! A process's line to the store: it can be cut, held, or end at a chosen call.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use s3bd::store::{Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};
use tokio::{sync::watch, time::Instant};

/// When the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// At this call from now on, counted from 0,
    pub calls: u64,
    /// before the store sees it, or after it was applied.
    pub applied: bool,
}

/// Clones are of the same line.
#[derive(Clone)]
pub struct Line {
    inner: Arc<dyn Store>,
    control: Arc<Mutex<Control>>,
    dead: watch::Sender<bool>,
}

struct Control {
    held_until: Instant,
    death: Option<Death>,
}

impl Line {
    pub fn new(inner: Arc<dyn Store>, death: Option<Death>) -> Self {
        let control = Control { held_until: Instant::now(), death };
        Self { inner, control: Arc::new(Mutex::new(control)), dead: watch::Sender::new(false) }
    }

    /// The process is gone: no call gets through, and none returns.
    pub fn cut(&self) {
        self.dead.send_replace(true);
    }

    pub fn set_death(&self, death: Death) {
        self.control.lock().unwrap().death = Some(death);
    }

    /// The process sleeps: calls go out and answers come in only afterwards.
    pub fn hold(&self, time: Duration) {
        self.control.lock().unwrap().held_until = Instant::now() + time;
    }

    /// Returns when the process is gone.
    pub async fn died(&self) {
        let mut dead = self.dead.subscribe();
        let _ = dead.wait_for(|dead| *dead).await;
    }

    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    async fn wait(&self) {
        loop {
            if self.is_dead() {
                std::future::pending::<()>().await;
            }
            let held_until = self.control.lock().unwrap().held_until;
            if held_until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(held_until).await;
        }
    }

    /// Whether this call is the one to die at: before it, or after.
    fn dies(&self) -> Option<bool> {
        let mut control = self.control.lock().unwrap();
        let death = control.death.as_mut()?;
        if death.calls > 0 {
            death.calls -= 1;
            return None;
        }
        let applied = death.applied;
        control.death = None;
        Some(applied)
    }

    async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.wait().await;
        let dies = self.dies();
        if dies == Some(false) {
            self.cut();
            self.wait().await;
        }
        let answer = call.await;
        if dies.is_some() {
            self.cut();
        }
        self.wait().await;
        answer
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("dead", &self.is_dead()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Line {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        self.call(self.inner.put(key, body, mode)).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        self.call(self.inner.get(key, range)).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.call(self.inner.head(key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.call(self.inner.list(prefix, after, limit)).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        self.call(self.inner.list_folder(prefix)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        self.call(self.inner.delete(keys)).await
    }
}
