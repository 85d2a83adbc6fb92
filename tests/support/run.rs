//! Other people's programs.

use std::{
    ffi::OsStr,
    process::{Command, Output},
};

use super::host::HANG;

/// Shows a text when the test fails.
#[allow(clippy::print_stderr, reason = "the test runner keeps it, and shows it when the test fails")]
pub fn show(text: &str) {
    eprintln!("{text}");
}

/// Runs a program to its end; what it printed, whatever the end.
pub fn output<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", &HANG.as_secs().to_string(), program]).args(arguments);
    // nbdsh and others want the distribution's Python.
    let path = std::env::var("PATH").unwrap_or_default();
    let output = command.env("PATH", format!("/usr/bin:{path}:/usr/sbin:/sbin")).output();
    let output = output.expect("timeout (coreutils) starts");
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    match output.status.code() {
        Some(124 | 137) => panic!("{program} {words:?} hangs"),
        Some(127) => panic!("{program} has to be installed (tests/run does it)"),
        _ => output,
    }
}

/// Runs a program that has to succeed; what it printed on standard output.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let Output { status, stdout, stderr } = output(program, arguments);
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{program} {words:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// Runs a line of shell that has to succeed.
pub fn shell(line: &str) -> String {
    run("bash", &["-euo", "pipefail", "-c", line])
}

/// Runs qemu-io, which exits with success whatever happened to the requests before the last.
pub fn qemu_io(uri: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(uri);
    let printed = run("qemu-io", &arguments);
    for line in printed.lines() {
        assert!(!line.contains("fail") && !line.contains("rror"), "{commands:?}: {printed}");
    }
}

/// Sends a signal, by name.
pub fn signal(process: u32, signal: &str) {
    run("sh", &["-c", "kill -\"$1\" \"$2\"", "sh", signal, &process.to_string()]);
}
