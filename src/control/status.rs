//! What `s3bd status` tells: the volume, the store beneath it, the clients above it, and the process.

use serde::{Deserialize, Serialize};

use super::Hello;
use crate::{
    nbd::Client,
    store::{health::Failure, metered::MeterSnapshot},
    volume::status::VolumeStatus,
};

/// An open server at one moment. Times are milliseconds, and milliseconds since 1970 where they are no spans.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Who serves which volume.
    pub server: Hello,
    /// When this was told, by the server's clock.
    pub time_ms: u64,
    /// The volume.
    pub volume: VolumeStatus,
    /// How far behind the bucket may be, as the server was told with `--max-lag`: bytes.
    pub lag_bytes_max: Option<u64>,
    /// The same, in time.
    pub lag_ms_max: Option<u64>,
    /// The store.
    pub store: StoreStatus,
    /// Clients that are connected.
    pub clients: Vec<Client>,
    /// Memory of the process, bytes; none where the system does not tell.
    pub resident_bytes: Option<u64>,
}

/// The object store, as this server has used it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// For how long it has not answered; none while it does.
    pub away_ms: Option<u64>,
    /// Calls that failed and wait to be made again.
    pub calls_waiting: u64,
    /// The last call that failed.
    pub last_failure: Option<Failure>,
    /// Requests since the server started.
    pub requests: MeterSnapshot,
    /// Estimate of what they cost at Amazon's prices (S3 Standard, us-east-1), US dollars; none for a directory.
    pub requests_usd: Option<f64>,
}
