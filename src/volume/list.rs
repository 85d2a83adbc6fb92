//! The volumes of a bucket: where they are, what each says of itself to everybody, and what it says to who has its secret.
//!
//! Folders are listed from the top down. What lies below a volume's own names is never listed, so the requests follow
//! the number of folders and volumes, and not the number of objects.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;

use super::{
    bucket::{Bucket, get_whole},
    error::VolumeError,
    info::{Info, info},
};
use crate::{
    format::{
        header::{Header, Protection},
        names,
    },
    seal::slot::Secret,
    store::{Folder, Store, prefixed::Prefixed},
};

/// Folders listed at once: enough to hide a store's latency.
const FOLDERS_MAX: usize = 16;

/// How deep volumes may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Names have one part, as in a directory.
    One,
    /// Names have slashes.
    Any,
}

/// A place where a volume is, was, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub volume: String,
    /// What makes it one.
    pub header: HeaderName,
}

/// Under which name a volume's header is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderName {
    /// Its own.
    Volume,
    /// That of a volume that is being made or removed.
    Unfinished,
    /// None, though there are slots and manifests: an `init` did not end, or the header was lost.
    Missing,
}

/// A volume of a bucket.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub volume: String,
    /// What its header says; none where that is damaged or missing.
    #[serde(flatten)]
    pub header: Option<Facts>,
    /// How it stands.
    #[serde(flatten)]
    pub standing: Standing,
}

/// What everybody may know of a volume.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Its id, hexadecimal.
    pub id: String,
    /// Size of a block, bytes.
    pub block_bytes: u32,
    /// Whether a password or key file is needed to read it.
    pub protected: bool,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
}

/// How a volume stands.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Standing {
    /// Its last writer closed it.
    Closed {
        /// What `s3bd info` tells of it.
        info: Box<Info>,
    },
    /// A writer has it, or died while it had it.
    Open {
        /// What `s3bd info` tells of it.
        info: Box<Info>,
    },
    /// Nothing more is known: the secret that was given, if any, does not open it.
    Locked,
    /// It is being made or removed, or either was interrupted.
    Unfinished,
    /// Something that everything hangs on is damaged or missing.
    Damaged {
        /// What.
        problem: String,
    },
}

/// All places with a volume, by name.
///
/// # Errors
/// The store's own.
pub async fn find_volumes(bucket: &dyn Store, depth: Depth) -> Result<Vec<Found>, VolumeError> {
    let mut pending = vec![String::new()];
    let mut listings = FuturesUnordered::new();
    let mut found = Vec::new();
    loop {
        while listings.len() < FOLDERS_MAX
            && let Some(prefix) = pending.pop()
        {
            listings.push(async move { (bucket.list_folder(&prefix).await, prefix) });
        }
        let Some((folder, prefix)) = listings.next().await else { break };
        let folder = folder?;
        if let Some(name) = prefix.strip_suffix('/') {
            let header = header_name(&prefix, &folder);
            found.extend(header.map(|header| Found { volume: name.to_owned(), header }));
        }
        let is_top = prefix.is_empty();
        if is_top || depth == Depth::Any {
            // A name of a volume begins with any part; no further part is one of a volume's own names.
            let own = |child: &String| names::FOLDERS.contains(&&child[prefix.len()..]);
            pending.extend(folder.folders.into_iter().filter(|child| is_top || !own(child)));
        }
    }
    found.sort_unstable_by(|a, b| a.volume.cmp(&b.volume));
    Ok(found)
}

fn header_name(prefix: &str, folder: &Folder) -> Option<HeaderName> {
    let has = |name: &str| folder.objects.iter().any(|line| line.key[prefix.len()..] == *name);
    let holds = |name: &str| folder.folders.iter().any(|child| child[prefix.len()..] == *name);
    if has(names::HEADER) {
        Some(HeaderName::Volume)
    } else if has(names::HEADER_UNFINISHED) {
        Some(HeaderName::Unfinished)
    } else if holds(names::KEYS) && holds(names::MANIFESTS) {
        Some(HeaderName::Missing)
    } else {
        None
    }
}

/// Looks at one of them; with `secret` where it needs one. What is damaged is part of the answer.
///
/// # Errors
/// The store's own, when it does not answer or refuses.
pub async fn look(
    bucket: &Arc<dyn Store>,
    found: &Found,
    secret: Option<&Secret>,
) -> Result<Listed, VolumeError> {
    let store: Arc<dyn Store> = Arc::new(Prefixed::new(Arc::clone(bucket), format!("{}/", found.volume)));
    let listed = |header: Option<&Header>, standing| Listed {
        volume: found.volume.clone(),
        header: header.map(facts),
        standing,
    };
    match found.header {
        HeaderName::Missing => {
            let problem = format!("the object \"{}\" is missing", names::HEADER);
            let standing = match Bucket::was_opened(&*store).await? {
                true => Standing::Damaged { problem },
                false => Standing::Unfinished,
            };
            Ok(listed(None, standing))
        }
        HeaderName::Unfinished => {
            let bytes = get_whole(&*store, names::HEADER_UNFINISHED).await?;
            let header = bytes.and_then(|bytes| Header::decode(&bytes).ok());
            Ok(listed(header.as_ref(), Standing::Unfinished))
        }
        HeaderName::Volume => {
            let header = match Bucket::header(&*store).await {
                Ok((header, _)) => header,
                Err(error) => return Ok(listed(None, standing(Err(error))?)),
            };
            let nothing = Secret::Nothing;
            let secret = match header.protection {
                Protection::Open => Some(&nothing),
                Protection::Secret => secret.filter(|secret| !matches!(secret, Secret::Nothing)),
            };
            let told = match secret {
                Some(secret) => tell(Arc::clone(&store), secret).await,
                None => Err(VolumeError::SecretNeeded),
            };
            Ok(listed(Some(&header), standing(told)?))
        }
    }
}

async fn tell(store: Arc<dyn Store>, secret: &Secret) -> Result<Info, VolumeError> {
    info(&Bucket::unlock(store, secret).await?).await
}

/// # Errors
/// Those that say nothing of the volume.
fn standing(told: Result<Info, VolumeError>) -> Result<Standing, VolumeError> {
    match told {
        Ok(info) if info.clean => Ok(Standing::Closed { info: Box::new(info) }),
        Ok(info) => Ok(Standing::Open { info: Box::new(info) }),
        Err(
            VolumeError::SecretNeeded | VolumeError::WrongSecret { .. } | VolumeError::NoFittingSlot { .. },
        ) => Ok(Standing::Locked),
        // Gone since it was found.
        Err(VolumeError::NoVolume | VolumeError::Unfinished) => Ok(Standing::Unfinished),
        Err(error) if error.kind() == super::error::Kind::Corrupt => {
            Ok(Standing::Damaged { problem: error.to_string() })
        }
        Err(error) => Err(error),
    }
}

fn facts(header: &Header) -> Facts {
    Facts {
        id: header.volume.to_string(),
        block_bytes: header.block_bytes,
        protected: header.protection == Protection::Secret,
        created_ms: header.created_ms,
    }
}
