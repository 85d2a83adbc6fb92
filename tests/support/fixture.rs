//! The stores that end-to-end tests run on: a directory, the S3 server within the test, a real Garage.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use s3bd::store::{Range, Store, directory::Directory, s3::S3};
use tempfile::TempDir;

use super::{
    garage::{self, Garage},
    s3_server::{self, Conditional, HttpFault, Reply, S3Server},
};

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    /// `conditional`: whether `If-None-Match` is honoured.
    OurS3 {
        conditional: bool,
    },
    Garage,
}

enum Server {
    Directory(TempDir),
    OurS3(S3Server),
    Garage(Garage),
}

/// A store that is gone with the test.
pub struct Fixture {
    server: Server,
}

impl Fixture {
    pub fn start(kind: Kind) -> Self {
        let server = match kind {
            Kind::Directory => Server::Directory(tempfile::tempdir().expect("a folder")),
            Kind::OurS3 { conditional } => {
                let server = S3Server::start();
                server.set_conditional(match conditional {
                    true => Conditional::Honoured,
                    false => Conditional::Ignored,
                });
                Server::OurS3(server)
            }
            Kind::Garage => Server::Garage(Garage::start()),
        };
        Self { server }
    }

    /// How the command line names a volume in it.
    pub fn location(&self, volume: &str) -> String {
        match &self.server {
            Server::Directory(folder) => format!("file:{}/{volume}", folder.path().display()),
            Server::OurS3(_) => format!("{}/{volume}", s3_server::BUCKET),
            Server::Garage(_) => format!("{}/{volume}", garage::BUCKET),
        }
    }

    /// Flags that reach it.
    pub fn flags(&self) -> Vec<String> {
        match &self.server {
            Server::Directory(_) => Vec::new(),
            Server::OurS3(server) => vec!["--endpoint".to_owned(), server.endpoint()],
            Server::Garage(server) => vec!["--endpoint".to_owned(), server.endpoint()],
        }
    }

    /// Variables that reach it.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let keys = |region: &str, id: &str, secret: &str| {
            vec![
                ("AWS_REGION", region.to_owned()),
                ("AWS_ACCESS_KEY_ID", id.to_owned()),
                ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
            ]
        };
        match &self.server {
            Server::Directory(_) => Vec::new(),
            Server::OurS3(_) => keys("us-east-1", s3_server::ACCESS_KEY, s3_server::SECRET_KEY),
            Server::Garage(_) => keys(garage::REGION, garage::ACCESS_KEY, garage::SECRET_KEY),
        }
    }

    /// While `true`, it does not answer.
    pub fn set_away(&mut self, away: bool) {
        match &mut self.server {
            Server::Directory(_) => panic!("a directory is never away"),
            Server::OurS3(server) => server.set_away(away),
            Server::Garage(server) => server.set_paused(away),
        }
    }

    /// From here on, it refuses calls of this HTTP method for good, as a policy does.
    pub fn refuse(&self, method: &'static str) {
        match &self.server {
            Server::OurS3(server) => server.set_plan(move |call| match call.method == method {
                true => HttpFault::Before(Reply::new(403, "AccessDenied")),
                false => HttpFault::None,
            }),
            Server::Directory(_) | Server::Garage(_) => panic!("it has no policies"),
        }
    }

    /// It refuses nothing any more.
    pub fn refuse_nothing(&self) {
        if let Server::OurS3(server) = &self.server {
            server.set_plan(|_| HttpFault::None);
        }
    }

    /// Requests of an HTTP method so far.
    pub fn count(&self, method: &str) -> u64 {
        match &self.server {
            Server::OurS3(server) => server.count(method),
            Server::Directory(_) | Server::Garage(_) => panic!("it does not count"),
        }
    }

    /// Ends the server as a power cut would, and starts it again on what it stored.
    pub fn restart(&mut self) {
        match &mut self.server {
            Server::Directory(_) => panic!("a directory has no server"),
            Server::OurS3(server) => {
                server.stop();
                server.start_again();
            }
            Server::Garage(server) => {
                server.kill();
                server.start_again();
            }
        }
    }

    /// All that is stored.
    pub fn contents(&self) -> BTreeMap<String, Bytes> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let store: Arc<dyn Store> = match &self.server {
                Server::Directory(folder) => Arc::new(Directory::open(folder.path()).expect("a directory")),
                Server::OurS3(server) => Arc::new(server.contents().clone()),
                Server::Garage(server) => {
                    Arc::new(S3::connect(garage::BUCKET, &server.options()).await.expect("a bucket"))
                }
            };
            let mut contents = BTreeMap::new();
            for line in store.list("", None, None).await.expect("a listing") {
                let got = store.get(&line.key, Range::Full).await.expect("an object");
                contents.insert(line.key, got.bytes);
            }
            contents
        })
    }
}

/// All files below a folder, with their contents.
pub fn files_below(folder: &Path) -> BTreeMap<String, Bytes> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).expect("a file");
                files.insert(entry.path().display().to_string(), bytes.into());
            }
        }
    }
    files
}
