//! A real Garage server as a child of the test: own directory, free ports, gone with the test.
//!
//! Garage ignores `If-None-Match` and keeps its data on disk. The program is looked for in `$S3BD_TEST_TOOLS/bin`, then
//! `~/.cache/s3bd/tools/bin`, then the `PATH`; where there is none the test fails and says how to get it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use s3bd::store::s3_config::S3Options;
use s3bd::store::s3_credentials::{CredentialSource, StaticCredentials};

pub const BUCKET: &str = "test-bucket";
pub const REGION: &str = "garage";
pub const ACCESS_KEY: &str = "GK000000000000000000000001";
pub const SECRET_KEY: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

const HOW_TO_GET_IT: &str = "no garage program in $S3BD_TEST_TOOLS/bin, ~/.cache/s3bd/tools/bin or PATH; build it: \
    cargo install --locked garage@2.5.0 --no-default-features --features sqlite,bundled-libs --root ~/.cache/s3bd/tools";

/// How often a start is tried, when another process takes a port that was free.
const START_TRIES_MAX: u32 = 5;

/// How often the port is asked whether it answers, and the time between: a minute in all.
const READY_TRIES_MAX: u32 = 600;
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// The server. Dropped, it is killed and its directory removed.
pub struct Garage {
    child: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Garage {
    /// Starts with an empty bucket named [`BUCKET`]; returns when it answers.
    pub fn start() -> Garage {
        let program = find_program().expect(HOW_TO_GET_IT);
        for _ in 0..START_TRIES_MAX {
            if let Some(garage) = Garage::try_start(&program) {
                return garage;
            }
        }
        panic!("garage did not come up in {START_TRIES_MAX} tries");
    }

    fn try_start(program: &Path) -> Option<Garage> {
        let directory = tempfile::tempdir().expect("no temporary directory");
        let (port, rpc_port) = (free_port(), free_port());
        std::fs::write(directory.path().join("garage.toml"), config(directory.path(), port, rpc_port))
            .unwrap();
        let child = spawn(program, directory.path());
        let mut garage = Garage { child, port, directory };
        garage.wait_until_ready().then_some(garage)
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it keeps its files, its log `garage.log` among them.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Options that reach this server.
    pub fn options(&self) -> S3Options {
        let provide = || StaticCredentials {
            access_key_id: ACCESS_KEY.to_owned(),
            secret_access_key: SECRET_KEY.into(),
            session_token: None,
        };
        S3Options {
            endpoint: Some(self.endpoint()),
            region: Some(REGION.to_owned()),
            credentials: CredentialSource::Provided(Arc::new(provide)),
            ..S3Options::default()
        }
    }

    /// The variables that reach this server, for a child process.
    pub fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL_S3", self.endpoint()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ]
    }

    /// `kill -9`; the data stays.
    pub fn kill(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// While `true`, it is stopped: connections are taken by the kernel, and nothing answers.
    pub fn set_paused(&self, paused: bool) {
        super::run::signal(self.child.id(), if paused { "STOP" } else { "CONT" });
    }

    /// Starts the killed server on its data and port.
    pub fn start_again(&mut self) {
        let program = find_program().expect(HOW_TO_GET_IT);
        self.child = spawn(&program, self.directory.path());
        assert!(self.wait_until_ready(), "garage did not come up again: {}", self.log());
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("garage.log")).unwrap_or_default()
    }

    /// An anonymous request is refused by a bucket that is there, and not before.
    fn wait_until_ready(&mut self) -> bool {
        for _ in 0..READY_TRIES_MAX {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return false;
            }
            if self.answers().unwrap_or(false) {
                return true;
            }
            std::thread::sleep(READY_INTERVAL);
        }
        false
    }

    fn answers(&self) -> std::io::Result<bool> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /{BUCKET}/x HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 403"))
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        self.kill();
    }
}

fn find_program() -> Option<PathBuf> {
    let tools = std::env::var_os("S3BD_TEST_TOOLS").map(PathBuf::from);
    let tools = tools.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/s3bd/tools")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = tools.map(|tools| tools.join("bin")).into_iter().chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join("garage")).find(|program| program.is_file())
}

/// Becomes the server; what it leaves behind kills it when the pipe to the test closes, however the test ends.
const SCRIPT: &str = "exec 3<&0; (read -r _ <&3; grep -q garage /proc/$$/comm && kill -9 $$) & exec 3<&-; \
                      exec \"$0\" -c garage.toml server --single-node --default-bucket </dev/null";

fn spawn(program: &Path, directory: &Path) -> Child {
    let log =
        std::fs::OpenOptions::new().create(true).append(true).open(directory.join("garage.log")).unwrap();
    Command::new("sh")
        .args(["-c", SCRIPT])
        .arg(program)
        .current_dir(directory)
        .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
        .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY)
        .env("GARAGE_DEFAULT_BUCKET", BUCKET)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("cannot start garage")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("no free port");
    listener.local_addr().expect("the socket has no address").port()
}

fn config(directory: &Path, port: u16, rpc_port: u16) -> String {
    let directory = directory.display();
    format!(
        r#"metadata_dir = "{directory}/meta"
data_dir = "{directory}/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc_port}"
rpc_secret = "0000000000000000000000000000000000000000000000000000000000000001"
[s3_api]
s3_region = "{REGION}"
api_bind_addr = "127.0.0.1:{port}"
"#
    )
}
