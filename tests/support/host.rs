//! A host that runs the real program, as a child with its own state directory.
//!
//! The child dies with the thread of the test that started it (`PR_SET_PDEATHSIG`, by setpriv), however that ends. What
//! it printed is kept in files, and shown when the test fails.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::Instant;

use super::fixture::Fixture;

/// What is waited for longer than this hangs. Two cores may be shared with much else.
pub const HANG: Duration = Duration::from_secs(300);

/// The password that hosts have, unless a test takes it from them.
pub const PASSWORD: &str = "correct horse battery staple";

/// A machine with s3bd on it.
pub struct Host {
    folder: TempDir,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    runs: AtomicU32,
}

impl Host {
    /// A host that reaches the store and has the password, and has seen no volume yet.
    pub fn new(fixture: &Fixture) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut variables: Vec<_> =
            fixture.variables().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        variables.push(("S3BD_PASSWORD".to_owned(), PASSWORD.to_owned()));
        Self { folder, flags: fixture.flags(), variables, runs: AtomicU32::new(0) }
    }

    /// Sets a variable of the program's environment.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self = self.without(name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes a variable from the program's environment.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self
    }

    /// Gives other flags for the store.
    #[must_use]
    pub fn with_flags(mut self, flags: &[&str]) -> Self {
        self.flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        self
    }

    /// Where the program keeps logs and caches.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Where tests may put files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything that the program has printed so far, on either channel.
    pub fn printed(&self) -> String {
        let files = super::fixture::files_below(&self.folder.path().join("printed"));
        files.values().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    /// The command line of `s3bd COMMAND LOCATION ARGUMENTS`, with the flags for the store and nothing of the test's own
    /// environment.
    pub fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut line = Command::new("setpriv");
        line.args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_s3bd"), command]);
        line.args(arguments).args(&self.flags);
        // A bucket as a whole has nothing on a host.
        if command != "list" {
            line.arg("--state-dir").arg(self.state());
        }
        line.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        line.env("HOME", self.folder.path()).env("RUST_BACKTRACE", "1").env("S3BD_LOG", "s3bd=info");
        line.envs(self.variables.iter().map(|(name, value)| (name, value)));
        line.stdin(Stdio::null());
        line
    }

    fn start(&self, command: &str, arguments: &[&str]) -> Running {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.path().join("printed");
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = |channel| folder.join(format!("{run:03}-{command}.{channel}"));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        let create = |path| std::fs::File::create(path).expect("a file");
        let mut line = self.command(command, arguments);
        let child = line.stdout(create(&stdout)).stderr(create(&stderr)).spawn().expect("setpriv starts");
        Running { child, what: format!("s3bd {command} {}", arguments.join(" ")), stdout, stderr }
    }

    /// Runs a command to its end.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Ended {
        self.start(command, arguments).end()
    }

    /// Makes a volume.
    pub fn init(&self, location: &str, size: &str) {
        self.run("init", &[location, "--size", size]).done();
    }

    /// Serves a volume on a free port and a Unix socket; returns when it is served.
    pub fn open(&self, location: &str, arguments: &[&str]) -> Server {
        let socket = self.folder.path().join("nbd.sock");
        let path = socket.display().to_string();
        let fixed = [location, "--port", "0", "--unix", &path];
        let mut running = self.start("open", &[&fixed, arguments].concat());
        let since = Instant::now();
        loop {
            let served: Vec<_> = running
                .stdout()
                .lines()
                .filter_map(|line| line.split_once("served at ").map(|(_, uri)| uri.to_owned()))
                .collect();
            if let [tcp, unix] = &served[..] {
                return Server { running: Some(running), uri: tcp.clone(), unix: unix.clone(), socket };
            }
            assert!(running.ended().is_none(), "{} ended early", running.what);
            assert!(since.elapsed() < HANG, "{} does not serve", running.what);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Begins to serve a volume, where the store keeps it from coming to that.
    pub fn begin_to_open(&self, location: &str) -> Opening {
        Opening { running: self.start("open", &[location, "--port", "0"]) }
    }

    /// Tries to serve a volume where it must fail.
    pub fn fail_to_open(&self, location: &str, arguments: &[&str]) -> Ended {
        self.run("open", &[&[location, "--port", "0"], arguments].concat())
    }
}

/// A volume that is being opened. Dropped, the program is killed.
pub struct Opening {
    running: Running,
}

impl Opening {
    /// Waits for something else that happens meanwhile.
    pub fn until(&self, is_so: impl Fn() -> bool) {
        let since = Instant::now();
        while !is_so() {
            assert!(since.elapsed() < HANG, "{}: nothing happens", self.running.what);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal, by name.
    pub fn signal(&self, signal: &str) {
        super::run::signal(self.running.child.id(), signal);
    }

    /// Waits for its end.
    pub fn end(self) -> Ended {
        self.running.end()
    }
}

/// The program, running.
struct Running {
    child: Child,
    what: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    fn stdout(&self) -> String {
        std::fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child that can be waited for")
    }

    /// Its threads and connections, for whoever wonders what it waits for.
    fn doing(&self) -> String {
        let pid = self.child.id();
        let script = format!(
            "grep -H . /proc/{pid}/task/*/comm /proc/{pid}/task/*/wchan; ss -tnpoi | grep -A1 pid={pid},"
        );
        let output = std::process::Command::new("sh").args(["-c", &script]).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }

    fn end(mut self) -> Ended {
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            assert!(since.elapsed() < HANG, "{} does not end:\n{}", self.what, self.doing());
            std::thread::sleep(Duration::from_millis(5));
        };
        let what = self.what.clone();
        Ended { what, code: status.code(), stdout: self.stdout(), stderr: self.stderr() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            super::run::show(&format!("== {}\n{}{}==", self.what, self.stdout(), self.stderr()));
        }
    }
}

/// A volume that is being served. Dropped, the program is killed.
pub struct Server {
    running: Option<Running>,
    /// By TCP, with the volume's name.
    pub uri: String,
    /// By the Unix socket, with the volume's name.
    pub unix: String,
    /// The Unix socket.
    pub socket: PathBuf,
}

impl Server {
    /// By TCP, without a name.
    pub fn default_uri(&self) -> String {
        let authority = self.uri.trim_start_matches("nbd://").split('/').next().unwrap_or_default();
        format!("nbd://{authority}")
    }

    /// The port alone.
    pub fn port(&self) -> &str {
        self.uri.trim_start_matches("nbd://").split(['/', ':']).nth(1).expect("a port")
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs")
    }

    /// What it wrote to standard error.
    pub fn stderr(&self) -> String {
        self.running().stderr()
    }

    /// Sends a signal, by name.
    pub fn signal(&self, signal: &str) {
        super::run::signal(self.running().child.id(), signal);
    }

    /// `kill -9`: nothing is closed.
    pub fn kill(mut self) {
        let mut running = self.running.take().expect("it runs");
        running.child.kill().expect("a child that can be killed");
        running.child.wait().expect("a child that can be waited for");
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        self.running.take().expect("it runs").end()
    }

    /// SIGTERM, and the end, which has to be a success.
    pub fn close(self) -> Ended {
        self.signal("TERM");
        self.end().done()
    }
}

/// What a run left.
#[derive(Debug)]
pub struct Ended {
    what: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// It has to be a success.
    pub fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}{}", self.what, self.stdout, self.stderr);
        self
    }

    /// It has to be an error: this exit code, nothing on standard output, and one line on standard error that holds all of
    /// `texts`.
    pub fn failed(self, code: i32, texts: &[&str]) -> Self {
        let shown = format!("{}\n{}{}", self.what, self.stdout, self.stderr);
        assert_eq!(self.code, Some(code), "{shown}");
        assert_eq!(self.stdout, "", "{shown}");
        // The log is for those who run servers; it is not the error.
        let lines: Vec<_> = self.stderr.lines().filter(|line| !is_log(line)).collect();
        assert!(matches!(lines[..], [line] if line.starts_with("s3bd: ")), "not one line: {shown}");
        for text in texts {
            assert!(lines[0].contains(text), "no {text:?} in: {shown}");
        }
        self
    }
}

/// A line of the log begins with a time.
fn is_log(line: &str) -> bool {
    line.trim_start_matches("\u{1b}[2m").starts_with("20")
}
