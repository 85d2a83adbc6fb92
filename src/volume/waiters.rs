//! Waiting until the log has come to an LSN: exactly those who can go on are woken, once a batch.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use wal::Lsn;

/// A position that only grows, and those who wait for it; or an end to all waiting.
#[derive(Debug, Default)]
pub struct Waiters {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    reached: Lsn,
    ended: bool,
    next_id: u64,
    waiting: BTreeMap<(Lsn, u64), Waker>,
}

/// The position will never be reached: the log failed or was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The position reached.
    #[must_use]
    pub fn reached(&self) -> Lsn {
        self.lock().reached
    }

    /// The position is `lsn` now.
    pub fn advance(&self, lsn: Lsn) {
        let mut inner = self.lock();
        if lsn <= inner.reached {
            return;
        }
        inner.reached = lsn;
        let rest = inner.waiting.split_off(&(Lsn(lsn.0 + 1), 0));
        let ready = std::mem::replace(&mut inner.waiting, rest);
        drop(inner);
        ready.into_values().for_each(Waker::wake);
    }

    /// It will not move any more.
    pub fn end(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        let all = std::mem::take(&mut inner.waiting);
        drop(inner);
        all.into_values().for_each(Waker::wake);
    }

    /// Ready when the position is at least `lsn`.
    pub fn wait(&self, lsn: Lsn) -> Wait<'_> {
        Wait { waiters: self, lsn, id: None }
    }
}

/// A wait for a position.
#[derive(Debug)]
pub struct Wait<'a> {
    waiters: &'a Waiters,
    lsn: Lsn,
    id: Option<u64>,
}

impl Future for Wait<'_> {
    type Output = Result<(), Ended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut inner = self.waiters.lock();
        if inner.reached >= self.lsn {
            return Poll::Ready(Ok(()));
        }
        if inner.ended {
            return Poll::Ready(Err(Ended));
        }
        let id = self.id.unwrap_or_else(|| {
            inner.next_id += 1;
            inner.next_id
        });
        inner.waiting.insert((self.lsn, id), context.waker().clone());
        drop(inner);
        self.id = Some(id);
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.waiters.lock().waiting.remove(&(self.lsn, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_at_or_below_go_on_and_the_others_wait() {
        let waiters = Waiters::default();
        let mut early = tokio_test_task(waiters.wait(Lsn(10)));
        let mut late = tokio_test_task(waiters.wait(Lsn(11)));
        assert!(early().is_none() && late().is_none());
        waiters.advance(Lsn(10));
        assert_eq!(early(), Some(Ok(())));
        assert!(late().is_none());
        waiters.end();
        assert_eq!(late(), Some(Err(Ended)));
        assert_eq!(waiters.wait(Lsn(9)).await, Ok(()), "what was reached stays reached");
        assert!(waiters.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_dropped_wait_leaves_nothing_behind() {
        let waiters = Waiters::default();
        let mut wait = tokio_test_task(waiters.wait(Lsn(10)));
        assert!(wait().is_none());
        drop(wait);
        assert!(waiters.lock().waiting.is_empty());
    }

    fn tokio_test_task<'a, F: Future + 'a>(future: F) -> impl FnMut() -> Option<F::Output> + 'a {
        let mut future = Box::pin(future);
        move || match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}
