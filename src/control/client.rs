//! Finds the server of a volume on this host, and asks it.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    time::timeout,
};

use super::{
    Answer, Hello, Progress, Refusal, Reply, Request,
    line::{Line, read_line},
    protocol::{decode_reply, encode_request},
    socket::{SOCKET, connect},
};

/// A server sends a line every second while a request is under way; one that is silent for this long hangs, or is stopped.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(20);
/// Longer lines are from no server of ours: a status with all clients has some kilobytes.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection broke: the server ended, or had no room for one more.
    #[error("the server ended the connection without an answer: it has ended, or is asked by too many")]
    Ended,
    /// Nothing came.
    #[error("the server does not answer: nothing came for {} s", SILENCE_TIME_MAX.as_secs())]
    Silent,
    /// What came makes no sense.
    #[error("the server's answer makes no sense: {0}")]
    Nonsense(String),
    /// The server says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The socket.
    #[error("{path}: {error}")]
    Socket {
        /// Its path.
        path: String,
        /// What the operating system said.
        error: io::Error,
    },
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    source: BufReader<OwnedReadHalf>,
    sink: OwnedWriteHalf,
    hello: Hello,
}

/// What looking for servers came upon.
#[derive(Debug, Default)]
pub struct Found {
    /// Servers of the location asked for, in the store asked for; more than one only where the volume was made anew while
    /// another of its name was served.
    pub clients: Vec<Client>,
    /// Servers of a volume of that name in other stores.
    pub elsewhere: Vec<Hello>,
    /// Sockets behind which nobody answered as a server does, and why.
    pub silent: Vec<(PathBuf, ClientError)>,
}

/// Looks for servers of the volume at `location` in the store at `endpoint`, as [`Hello`] has them, in all folders of the
/// state directory `root`. Asks no store.
///
/// # Errors
/// The directory is there and cannot be read.
pub async fn find(root: &Path, location: &str, endpoint: Option<&str>) -> io::Result<Found> {
    let mut found = Found::default();
    let folders = match std::fs::read_dir(root) {
        Ok(folders) => folders,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for folder in folders {
        paths.push(folder?.path());
    }
    paths.sort();
    for folder in paths {
        match Client::connect(&folder).await {
            Ok(Some(client)) if client.hello.location != location => {}
            Ok(Some(client)) if client.hello.endpoint.as_deref() == endpoint => found.clients.push(client),
            Ok(Some(client)) => found.elsewhere.push(client.hello),
            Ok(None) => {}
            Err(error) => found.silent.push((folder.join(SOCKET), error)),
        }
    }
    Ok(found)
}

impl Client {
    /// Connects to the server whose socket is in `folder`; `None` where nobody serves.
    ///
    /// # Errors
    /// Somebody is there and does not answer as a server does.
    pub async fn connect(folder: &Path) -> Result<Option<Self>, ClientError> {
        let path = || folder.join(SOCKET).display().to_string();
        let stream = match connect(folder).await {
            Ok(Some(stream)) => stream,
            Ok(None) => return Ok(None),
            Err(error) => return Err(ClientError::Socket { path: path(), error }),
        };
        let (source, sink) = stream.into_split();
        let nobody = Hello {
            volume: String::new(),
            location: String::new(),
            endpoint: None,
            pid: 0,
            program: String::new(),
            since_ms: 0,
        };
        let mut client = Self { source: BufReader::new(source), sink, hello: nobody };
        match client.ask(&Request::Hello, |_| ()).await? {
            Answer::Hello(hello) => client.hello = hello,
            other => return Err(ClientError::Nonsense(format!("{other:?}"))),
        }
        Ok(Some(client))
    }

    /// Who is there.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Asks, and waits for the answer; `show` is told how far it is, about once a second.
    ///
    /// # Errors
    /// As they say.
    pub async fn ask(
        &mut self,
        request: &Request,
        mut show: impl FnMut(Progress),
    ) -> Result<Answer, ClientError> {
        let line = encode_request(request);
        self.sink.write_all(&line).await.map_err(|_| ClientError::Ended)?;
        loop {
            let line = timeout(SILENCE_TIME_MAX, read_line(&mut self.source, REPLY_BYTES_MAX)).await;
            let line = match line.map_err(|_| ClientError::Silent)? {
                Ok(Line::Whole(line)) => line,
                Ok(Line::End) | Err(_) => return Err(ClientError::Ended),
                Ok(Line::TooLong) => return Err(ClientError::Nonsense("it does not end".to_owned())),
            };
            match decode_reply(&line).map_err(ClientError::Nonsense)? {
                Reply::Working(progress) => show(progress),
                Reply::Answer(answer) => return Ok(answer),
                Reply::Refused(refusal) => return Err(refusal.into()),
            }
        }
    }
}
