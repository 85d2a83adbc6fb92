//! What `s3bd open` answers on its control socket.

use std::sync::Arc;

use async_trait::async_trait;

use super::{exports::VolumeExports, perform::perform, target::Target, tell};
use crate::{
    control::{
        Answer, ControlSocket, Hello, Limits, Refusal, RefusalKind, Request, Resized, Server, Service,
        Status, StoreStatus, Working,
    },
    nbd::Clients,
    store::{
        cost::{AMAZON_S3_STANDARD, requests_usd},
        open::Opened,
    },
    volume::{
        Volume,
        error::{Kind, VolumeError},
        host::HostRoot,
        status::Waiting,
    },
};

/// A volume that is being served.
struct Served {
    hello: Hello,
    volume: Arc<Volume>,
    opened: Opened,
    clients: Clients,
    exports: Arc<VolumeExports>,
    is_bucket: bool,
}

/// Answers on the volume's control socket until the server that is returned ends. Without the socket the volume is served
/// all the same; where another process has the volume's folder, the socket is that one's.
pub(super) async fn serve_control(
    target: &Target,
    volume: &Arc<Volume>,
    opened: &Opened,
    clients: Clients,
    exports: Arc<VolumeExports>,
) -> Option<Server> {
    let lock = volume.lock()?;
    let core = volume.core();
    let id = core.bucket.header.volume;
    let bind = async || {
        let folder = HostRoot::new(target.state_dir()?).folder(id);
        let endpoint = target.endpoint().await?;
        anyhow::Ok((ControlSocket::bind(&folder, Some(lock))?, endpoint))
    };
    let (socket, endpoint) = match bind().await {
        Ok(bound) => bound,
        Err(error) => {
            tell(format_args!("no control socket, so status and sync will not find this server: {error:#}"));
            return None;
        }
    };
    let hello = Hello {
        volume: id.to_string(),
        location: target.identity(),
        endpoint,
        pid: std::process::id(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        since_ms: core.env.clock.now_ms(),
    };
    let (volume, opened, is_bucket) = (Arc::clone(volume), opened.clone(), target.is_bucket());
    let served = Served { hello, volume, opened, clients, exports, is_bucket };
    Some(Server::start(socket, Arc::new(served), Limits::default()))
}

impl Served {
    fn status(&self) -> Status {
        let core = self.volume.core();
        let (health, requests) = (self.opened.health(), self.opened.meter());
        Status {
            server: self.hello.clone(),
            time_ms: core.env.clock.now_ms(),
            volume: core.status(),
            lag_bytes_max: core.settings.lag_bytes_max,
            lag_ms_max: core.settings.lag_time_max.map(|lag| lag.as_millis() as u64),
            store: StoreStatus {
                away_ms: health.away_ms,
                calls_waiting: health.calls_waiting,
                last_failure: health.last_failure,
                requests,
                requests_usd: self.is_bucket.then(|| requests_usd(&requests, AMAZON_S3_STANDARD)),
            },
            clients: self.clients.list(),
            resident_bytes: resident_bytes(),
        }
    }

    /// Returns when everything acknowledged before the call is in the bucket.
    async fn sync(&self, working: &Working) -> Result<(), VolumeError> {
        let core = self.volume.core();
        core.check()?;
        let end = core.state().end;
        let mut progress = core.progress.subscribe();
        let sync = core.publish_to(end);
        tokio::pin!(sync);
        loop {
            let left_bytes = end.0.saturating_sub(core.published.reached().0);
            working.set(left_bytes);
            tokio::select! {
                biased;
                done = &mut sync => return done.and_then(|()| core.noted.tell_incomplete(Waiting::Sync)),
                _ = progress.changed() => {}
            }
        }
    }
}

#[async_trait]
impl Service for Served {
    fn hello(&self) -> Hello {
        self.hello.clone()
    }

    fn store_away_ms(&self) -> Option<u64> {
        self.opened.health().away_ms
    }

    async fn answer(&self, request: Request, working: &Working) -> Result<Answer, Refusal> {
        match request {
            Request::Hello => Ok(Answer::Hello(self.hello())),
            Request::Status => Ok(Answer::Status(Box::new(self.status()))),
            Request::Sync => self.sync(working).await.map(|()| Answer::Done).map_err(|error| refusal(&error)),
            request => {
                if let Request::SnapshotDelete { name } = &request {
                    self.refuse_if_read(name)?;
                }
                match perform(self.volume.core(), &request, working).await {
                    Some(Ok(Answer::Resized(resized))) => {
                        let clients = self.clients.list().into_iter().map(|client| client.program).collect();
                        Ok(Answer::Resized(Resized { clients, ..resized }))
                    }
                    Some(done) => done.map_err(|error| refusal(&error)),
                    None => Err(Refusal::unsupported(&request)),
                }
            }
        }
    }
}

impl Served {
    /// What a client reads stays.
    fn refuse_if_read(&self, name: &str) -> Result<(), Refusal> {
        let id = self.volume.core().state().snapshots.get(name).map(|snapshot| snapshot.id);
        if id.is_ok_and(|id| self.exports.is_open(id)) {
            let message = format!("snapshot {name:?} is open: a client reads it; disconnect that first");
            return Err(Refusal { kind: RefusalKind::Failed, message });
        }
        Ok(())
    }
}

fn refusal(error: &VolumeError) -> Refusal {
    let kind = match error.kind() {
        Kind::Fenced => RefusalKind::Fenced,
        Kind::Corrupt => RefusalKind::Damaged,
        Kind::Closed => RefusalKind::Closed,
        Kind::Retry | Kind::OutcomeUnknown | Kind::Full | Kind::Invalid => RefusalKind::Failed,
    };
    Refusal { kind, message: error.to_string() }
}

/// Memory of this process, bytes (proc(5), `/proc/self/status`).
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
