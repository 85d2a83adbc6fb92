//! Accepts clients, serves each in a task of its own, and closes them all at the end.

use std::{
    future::{Future, poll_fn},
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task::{JoinError, JoinSet},
    time::sleep,
};
use tracing::Instrument;

use super::{
    Clients, Exports, Listener, clients::Peer, error::ConnectionError, handshake::handshake, input::Input,
    listener::Stream, transmission::Transmission,
};

/// How long to wait after a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more are closed as they come.
    pub connections_max: usize,
    /// Requests of a connection that are not answered; more are not received.
    pub requests_max: usize,
    /// Data of a connection's requests and replies that are held in memory; more is not received. One request is
    /// always taken, whatever its length.
    pub bytes_max: u64,
    /// From connecting to the first option, and from each option to the next; a client that takes longer is dropped. Not for
    /// all of them: who lists exports may ask for each, and libnbd holds back each of those questions for a fifth of a second.
    pub handshake_time_max: Duration,
    /// How long requests under way may take to be answered once the connection is to end.
    pub grace_time_max: Duration,
}

impl Default for Limits {
    /// The kernel's client has at most 128 requests under way for a connection, and 16 connections are many.
    fn default() -> Self {
        Self {
            connections_max: 128,
            requests_max: 256,
            bytes_max: 64 << 20,
            handshake_time_max: Duration::from_secs(10),
            grace_time_max: Duration::from_secs(10),
        }
    }
}

/// An NBD server.
pub struct Server {
    exports: Arc<dyn Exports>,
    limits: Limits,
    clients: Clients,
}

impl Server {
    /// A server of these exports.
    pub fn new(exports: Arc<dyn Exports>, limits: Limits) -> Self {
        Self { exports, limits, clients: Clients::default() }
    }

    /// Its clients, now and later.
    pub fn clients(&self) -> Clients {
        self.clients.clone()
    }

    /// Serves until `shutdown`. Then nobody is accepted, requests under way are answered and others refused, and all
    /// connections are closed, after [`Limits::grace_time_max`] and a second at the latest. On return every
    /// connection is closed; a request that outlasted the grace time still runs on its device, in a task of its own.
    ///
    /// If this future is dropped, the connections close the same way by themselves.
    pub async fn serve(&self, listeners: Vec<Listener>, shutdown: impl Future<Output = ()>) {
        let (stop, _) = watch::channel(false);
        let mut connections = Connections(JoinSet::new());
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(result) = connections.0.join_next() => log_end(result),
                accepted = accept(&listeners) => self.begin(accepted, &mut connections.0, &stop).await,
            }
        }
        drop(listeners);
        stop.send_replace(true);
        while let Some(result) = connections.0.join_next().await {
            log_end(result);
        }
    }

    async fn begin(
        &self,
        accepted: io::Result<Stream>,
        connections: &mut JoinSet<Result<(), ConnectionError>>,
        stop: &watch::Sender<bool>,
    ) {
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                return sleep(ACCEPT_PAUSE).await;
            }
        };
        if connections.len() >= self.limits.connections_max {
            tracing::warn!(connections = connections.len(), "too many connections, closing a new one");
            return;
        }
        let stop = stop.subscribe();
        let client = |peer| Connection {
            exports: self.exports.clone(),
            limits: self.limits,
            clients: self.clients.clone(),
            peer,
        };
        match stream {
            Stream::Tcp(stream) => {
                let peer = Peer::of_tcp(&stream);
                let span = tracing::debug_span!("nbd", client = ?peer.address);
                // proto.md, "Protocol phases". Without it, replies are late, not lost.
                let _ = stream.set_nodelay(true);
                let (source, sink) = stream.into_split();
                connections.spawn(client(peer).serve(source, sink, stop).instrument(span));
            }
            Stream::Unix(stream) => {
                let span = tracing::debug_span!("nbd", client = "unix");
                let peer = Peer::of_unix(&stream);
                let (source, sink) = stream.into_split();
                connections.spawn(client(peer).serve(source, sink, stop).instrument(span));
            }
        }
    }
}

/// The tasks of all connections. Not aborted on drop: that would cancel requests halfway.
struct Connections(JoinSet<Result<(), ConnectionError>>);

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.detach_all();
    }
}

/// What one connection is given.
struct Connection {
    exports: Arc<dyn Exports>,
    limits: Limits,
    clients: Clients,
    peer: Peer,
}

impl Connection {
    /// From greeting to close.
    async fn serve<R, W>(
        self,
        source: R,
        mut sink: W,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let Self { exports, limits, clients, peer } = self;
        let mut input = Input::new(source);
        let limit = limits.handshake_time_max;
        let session = tokio::select! {
            shaken = handshake(&mut input, &mut sink, &*exports, limit) => shaken?,
            // Nothing is under way yet, so closing is all there is to do.
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let Some(session) = session else { return Ok(()) };
        tracing::info!(export = session.export.name, "client connected");
        let _entry = clients.enter(peer, &session.export.name);
        Transmission::new(input, sink, session, limits).run(stop).await
    }
}

async fn accept(listeners: &[Listener]) -> io::Result<Stream> {
    let poll = |context: &mut Context<'_>| {
        let ready = listeners.iter().map(|listener| listener.poll_accept(context)).find(Poll::is_ready);
        ready.unwrap_or(Poll::Pending)
    };
    poll_fn(poll).await
}

fn log_end(result: Result<Result<(), ConnectionError>, JoinError>) {
    match result {
        Ok(Ok(())) => tracing::debug!("client left"),
        Ok(Err(error)) => tracing::warn!(error = &error as &dyn std::error::Error, "connection ended"),
        Err(error) => tracing::error!(%error, "connection failed"),
    }
}
