//! What the log says of an outage. A file of its own: the caches of `tracing` are shared by all threads of a process.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use s3bd::store::faulty::Faulty;
use s3bd::store::memory::Memory;
use s3bd::store::retry::{RetryOptions, Retrying};
use s3bd::store::{PutMode, Store};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_logged_once_a_minute_and_at_its_end() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let faulty = Faulty::new(Memory::new());
    let retrying = Retrying::new(faulty.clone(), RetryOptions::default(), Arc::new(|| u64::MAX / 7 * 3));
    retrying.list("", None, None).await.unwrap();
    faulty.set_away(true);
    let calls = ["a", "b", "c"].map(|key| {
        let retrying = retrying.clone();
        tokio::spawn(async move { retrying.put(key, &[], PutMode::Create).await.unwrap() })
    });
    tokio::time::sleep(Duration::from_secs(600)).await;
    faulty.set_away(false);
    for call in calls {
        call.await.unwrap();
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].contains("WARN") && lines[0].contains("put a: injected"), "{}", lines[0]);
    let repeated = lines.iter().filter(|line| line.contains("3 calls waiting")).count();
    assert!((6..=10).contains(&repeated), "ten minutes: {text}");
    assert_eq!(
        lines.iter().filter(|line| line.contains("WARN") && line.contains("answers again")).count(),
        1,
        "{text}"
    );
    assert_eq!(lines.len(), repeated + 2, "{text}");
}
