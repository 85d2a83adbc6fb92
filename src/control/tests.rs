//! A server and clients over a real socket, with a service that waits when told.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use super::{
    client::{Client, ClientError, find},
    *,
};

#[derive(Debug)]
struct Fake {
    endpoint: Option<String>,
    may_end: Semaphore,
    under_way: AtomicUsize,
}

/// Counts a request as under way until it is answered or dropped.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Service for Fake {
    fn hello(&self) -> Hello {
        let (volume, location) = ("00ff".to_owned(), "bucket/disk".to_owned());
        Hello {
            volume,
            location,
            endpoint: self.endpoint.clone(),
            pid: 1,
            program: "0".to_owned(),
            since_ms: 2,
        }
    }

    fn store_away_ms(&self) -> Option<u64> {
        Some(8)
    }

    async fn answer(&self, request: Request, working: &Working) -> Result<Answer, Refusal> {
        match request {
            Request::Sync | Request::Flatten | Request::SnapshotList => {
                self.under_way.fetch_add(1, Ordering::SeqCst);
                let _under_way = UnderWay(&self.under_way);
                working.set(7);
                self.may_end.acquire().await.expect("nobody closes it").forget();
                Ok(Answer::Done)
            }
            // Long enough to fill a socket's buffer soon.
            _ => Err(Refusal::new(RefusalKind::Failed, "x".repeat(4000))),
        }
    }
}

impl Fake {
    fn at(endpoint: Option<&str>) -> Self {
        let endpoint = endpoint.map(str::to_owned);
        Self { endpoint, may_end: Semaphore::new(0), under_way: AtomicUsize::new(0) }
    }
}

struct Rig {
    folder: TempDir,
    service: Arc<Fake>,
    server: Server,
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let service = Arc::new(Fake::at(None));
        let socket = ControlSocket::bind(&Self::volume(folder.path()), None).unwrap();
        let server = Server::start(socket, Arc::clone(&service) as Arc<dyn Service>, limits);
        Self { folder, service, server }
    }

    fn volume(root: &Path) -> std::path::PathBuf {
        let folder = root.join("00ff");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    async fn client(&self) -> Client {
        Client::connect(&Self::volume(self.folder.path())).await.unwrap().expect("somebody serves")
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(Self::volume(self.folder.path()).join(SOCKET)).await.unwrap()
    }

    async fn until_under_way(&self, count: usize) {
        while self.service.under_way.load(Ordering::SeqCst) != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn quick() -> Limits {
    Limits { working_interval: Duration::from_millis(5), ..Limits::default() }
}

#[tokio::test]
async fn a_request_that_takes_long_says_how_far_it_is_and_holds_up_no_other() {
    let rig = Rig::new(quick());
    let (mut waiting, mut other) = (rig.client().await, rig.client().await);
    for request in [Request::Sync, Request::Flatten, Request::SnapshotList] {
        let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
        let ask = async {
            let answer = waiting.ask(&request, |now| _ = told.send(now)).await;
            assert_eq!(answer.unwrap(), Answer::Done);
        };
        let watch = async {
            // Whatever is asked for: the service knows of the store.
            assert_eq!(tells.recv().await, Some(Progress { left_bytes: 7, store_away_ms: Some(8) }));
            let refused = other.ask(&Request::Status, |_| ()).await;
            assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
            rig.service.may_end.add_permits(1);
        };
        tokio::join!(ask, watch);
    }
    // The connection goes on after a refusal and after an answer.
    rig.service.may_end.add_permits(1);
    assert_eq!(other.ask(&Request::Sync, |_| ()).await.unwrap(), Answer::Done);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let rig = Rig::new(quick());
    let mut stream = rig.raw().await;
    stream.write_all(b"{\"version\":1,\"request\":\"sync\"}\n").await.unwrap();
    rig.until_under_way(1).await;
    drop(stream);
    rig.until_under_way(0).await;
}

#[tokio::test]
async fn garbage_and_endless_lines_are_refused_and_cost_their_own_connection_alone() {
    let rig = Rig::new(Limits { request_bytes_max: 1000, ..quick() });
    let mut neighbour = rig.client().await;
    for garbage in [&b"\n"[..], b"GET / HTTP/1.1\r\n", b"\xff\xfe\n", b"[[[[\n", &[b'x'; 5000]] {
        let mut stream = rig.raw().await;
        stream.write_all(garbage).await.unwrap();
        let mut reply = String::new();
        // A connection that is closed with bytes unread is reset after the reply.
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            reply += std::str::from_utf8(&buffer[..length]).unwrap();
        }
        assert!(reply.contains("\"kind\":\"invalid\"") && reply.ends_with('\n'), "{garbage:?}: {reply}");
    }
    rig.service.may_end.add_permits(1);
    assert_eq!(neighbour.ask(&Request::Sync, |_| ()).await.unwrap(), Answer::Done);
}

#[tokio::test]
async fn a_client_that_says_half_a_request_is_not_waited_for_for_ever() {
    let rig = Rig::new(Limits { idle_time_max: Duration::from_millis(20), ..quick() });
    let mut stream = rig.raw().await;
    stream.write_all(b"{\"version\":1,").await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_dropped() {
    let rig = Rig::new(Limits { send_time_max: Duration::from_millis(20), ..quick() });
    let mut stream = rig.raw().await;
    let error = loop {
        if let Err(error) = stream.write_all(b"{\"version\":1,\"request\":\"status\"}\n").await {
            break error;
        }
    };
    let ended = [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset];
    assert!(ended.contains(&error.kind()), "{error}");
}

#[tokio::test]
async fn more_connections_than_allowed_are_closed_and_room_comes_back() {
    let rig = Rig::new(Limits { connections_max: 1, ..quick() });
    let first = rig.client().await;
    let refused = Client::connect(&Rig::volume(rig.folder.path())).await;
    assert!(matches!(refused, Err(ClientError::Ended)), "{refused:?}");
    drop(first);
    // The server may not have seen yet that the first left.
    while !matches!(Client::connect(&Rig::volume(rig.folder.path())).await, Ok(Some(_))) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_server_that_ends_answers_what_can_be_answered_and_takes_its_socket_along() {
    let rig = Rig::new(Limits { grace_time_max: Duration::from_secs(60), ..quick() });
    let mut waiting = rig.client().await;
    let idle = rig.client().await;
    let ask = tokio::spawn(async move { waiting.ask(&Request::Sync, |_| ()).await });
    rig.until_under_way(1).await;
    let ended = tokio::spawn(rig.server.end());
    rig.service.may_end.add_permits(1);
    assert_eq!(ask.await.unwrap().unwrap(), Answer::Done);
    ended.await.unwrap();
    assert!(Client::connect(&Rig::volume(rig.folder.path())).await.unwrap().is_none());
    drop(idle);
}

#[tokio::test]
async fn servers_are_found_by_location_and_what_is_no_server_is_named() {
    let rig = Rig::new(quick());
    let root = rig.folder.path();
    assert_eq!(find(root, "bucket/disk", None).await.unwrap().clients.len(), 1);
    let found = find(root, "bucket/other", None).await.unwrap();
    assert!(found.clients.is_empty() && found.silent.is_empty());
    assert!(find(&root.join("missing"), "bucket/disk", None).await.unwrap().clients.is_empty());

    std::fs::write(root.join("a file"), "").unwrap();
    let stranger = root.join("stranger");
    std::fs::create_dir(&stranger).unwrap();
    let listener = UnixListener::bind(stranger.join(SOCKET)).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"hello yourself\n").await;
        }
    });
    let found = find(root, "bucket/disk", None).await.unwrap();
    assert_eq!(found.clients.len(), 1);
    assert!(matches!(&found.silent[..], [(path, ClientError::Nonsense(_))] if path.starts_with(&stranger)));
}

#[tokio::test]
async fn of_two_stores_with_a_bucket_of_one_name_the_right_server_answers() {
    let root = tempfile::tempdir().unwrap();
    let (one, other) = ("http://one.example.org", "http://other.example.org");
    let start = |folder: &str, endpoint: Option<&str>| {
        let folder = root.path().join(folder);
        std::fs::create_dir(&folder).unwrap();
        let socket = ControlSocket::bind(&folder, None).unwrap();
        Server::start(socket, Arc::new(Fake::at(endpoint)), quick())
    };
    let found = async |endpoint: Option<&str>| {
        let found = find(root.path(), "bucket/disk", endpoint).await.unwrap();
        let endpoint_of = |hello: &Hello| hello.endpoint.clone();
        let clients: Vec<_> = found.clients.iter().map(|client| endpoint_of(client.hello())).collect();
        (clients, found.elsewhere.iter().map(endpoint_of).collect::<Vec<_>>())
    };
    let words = |endpoint: &str| Some(endpoint.to_owned());
    let _one = start("01", Some(one));
    // Alone, and all the same not meant.
    assert_eq!(found(Some(other)).await, (vec![], vec![words(one)]));
    let _other = start("02", Some(other));
    let _amazon = start("03", None);
    assert_eq!(found(Some(one)).await, (vec![words(one)], vec![words(other), None]));
    assert_eq!(found(Some(other)).await, (vec![words(other)], vec![words(one), None]));
    assert_eq!(found(None).await, (vec![None], vec![words(one), words(other)]));
}
