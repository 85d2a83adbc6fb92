//! Answers the requests that come over the socket.
//!
//! # Concurrency
//! A task for each connection, one request at a time on it. While a request is under way its client gets a line every
//! second: it knows that somebody is there, and a client that left is noticed by the line that cannot be sent.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Answer, ControlSocket, Progress, Refusal, RefusalKind, Reply, Request, Service, Working,
    line::{Line, read_line},
    protocol::{decode_request, encode_reply},
};

/// How long to wait after a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more are closed as they come.
    pub connections_max: usize,
    /// Length of a request.
    pub request_bytes_max: usize,
    /// A connection on which no request comes to its end for this long is closed.
    pub idle_time_max: Duration,
    /// A client that takes no line for this long is dropped.
    pub send_time_max: Duration,
    /// Time between two lines to a client that waits.
    pub working_interval: Duration,
    /// How long requests under way may take to be answered once the server ends.
    pub grace_time_max: Duration,
}

impl Default for Limits {
    /// Some people and their monitoring ask at once; a request is a name and a few words.
    fn default() -> Self {
        Self {
            connections_max: 32,
            request_bytes_max: 64 << 10,
            idle_time_max: Duration::from_secs(60),
            send_time_max: Duration::from_secs(10),
            working_interval: Duration::from_secs(1),
            grace_time_max: Duration::from_secs(1),
        }
    }
}

/// A control server that runs. Dropped, it ends at once.
#[derive(Debug)]
pub struct Server {
    task: Option<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Serves on `socket` until [`Server::end`].
    #[must_use]
    pub fn start(socket: ControlSocket, service: Arc<dyn Service>, limits: Limits) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { task: Some(tokio::spawn(accept(socket, service, limits, stopped))), stop }
    }

    /// Answers what is under way, and removes the socket.
    pub async fn end(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            // A panic in it was reported by the runtime, and is no reason not to close the volume.
            let _ = task.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept(
    socket: ControlSocket,
    service: Arc<dyn Service>,
    limits: Limits,
    stop: watch::Receiver<bool>,
) {
    let mut stopped = stop.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop_of(&mut stopped) => break,
            Some(_) = connections.join_next() => {}
            accepted = socket.listener.accept() => match accepted {
                Ok(_) if connections.len() >= limits.connections_max => {
                    tracing::warn!(connections = connections.len(), "too many control connections, closing a new one");
                }
                Ok((stream, _)) => {
                    let service = Arc::clone(&service);
                    connections.spawn(Connection::new(stream, service, limits).run(stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "control connection not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    let _ = timeout(limits.grace_time_max, async { while connections.join_next().await.is_some() {} }).await;
}

/// Returns when the server ends.
async fn stop_of(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the server.
    let _ = stop.wait_for(|stop| *stop).await;
}

struct Connection {
    source: BufReader<OwnedReadHalf>,
    sink: OwnedWriteHalf,
    service: Arc<dyn Service>,
    limits: Limits,
}

impl Connection {
    fn new(stream: UnixStream, service: Arc<dyn Service>, limits: Limits) -> Self {
        let (source, sink) = stream.into_split();
        Self { source: BufReader::new(source), sink, service, limits }
    }

    /// Until the client leaves, is silent for too long, or says what is no request; or until the server ends.
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let Limits { request_bytes_max, idle_time_max, .. } = self.limits;
            let line = tokio::select! {
                biased;
                line = timeout(idle_time_max, read_line(&mut self.source, request_bytes_max)) => line,
                () = stop_of(&mut stop) => return,
            };
            let request = match line {
                Ok(Ok(Line::Whole(line))) => decode_request(&line),
                Ok(Ok(Line::TooLong)) => {
                    let text = format!("not a request: longer than {request_bytes_max} bytes");
                    Err(Refusal::new(RefusalKind::Invalid, text))
                }
                Ok(Ok(Line::End) | Err(_)) | Err(_) => return,
            };
            let sent = match request {
                Ok(request) => self.answer(request).await,
                Err(refusal) => {
                    let over = refusal.kind == RefusalKind::Invalid;
                    let sent = self.send(&Reply::Refused(refusal)).await;
                    if over {
                        return;
                    }
                    sent
                }
            };
            if sent.is_err() {
                return;
            }
        }
    }

    async fn answer(&mut self, request: Request) -> io::Result<()> {
        if request == Request::Hello {
            let hello = self.service.hello();
            return self.send(&Reply::Answer(Answer::Hello(hello))).await;
        }
        let (service, working) = (Arc::clone(&self.service), Working::default());
        let answer = service.answer(request, &working);
        tokio::pin!(answer);
        let mut ticks = interval(self.limits.working_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once, before there is anything to tell.
        ticks.tick().await;
        loop {
            tokio::select! {
                biased;
                answered = &mut answer => {
                    let reply = match answered {
                        Ok(answer) => Reply::Answer(answer),
                        Err(refusal) => Reply::Refused(refusal),
                    };
                    return self.send(&reply).await;
                }
                _ = ticks.tick() => {
                    let store_away_ms = self.service.store_away_ms();
                    let progress = Progress { left_bytes: working.get(), store_away_ms };
                    self.send(&Reply::Working(progress)).await?;
                }
            }
        }
    }

    async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let line = encode_reply(reply);
        match timeout(self.limits.send_time_max, self.sink.write_all(&line)).await {
            Ok(sent) => sent,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
