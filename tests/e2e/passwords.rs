//! Where passwords come from, and where neither they nor plaintext go.

use super::stage;
use crate::support::{
    fixture::{Fixture, Kind, files_below},
    host::{HANG, Host, PASSWORD},
    run::qemu_io,
};

pub(crate) fn a_password_comes_from_a_file_a_command_or_the_environment(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let bare = host.without("S3BD_PASSWORD");
    let file = bare.folder().join("password");
    // One line end does not belong to it.
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("a file");
    let path = file.display().to_string();
    bare.run("init", &[&volume, "--size", "64M", "--password-file", &path]).done();
    let ways = [
        vec!["--password-file", &path[..]],
        vec!["--password-command", "echo 'correct horse' battery staple"],
    ];
    for way in &ways {
        let server = bare.open(&volume, way);
        server.close();
        bare.run("recover", &[&[&volume[..]], &way[..]].concat()).done();
    }
    Host::new(&fixture).open(&volume, &[]).close();
    // A flag comes before the environment.
    let wrong = Host::new(&fixture).with("S3BD_PASSWORD", "wrong");
    wrong.open(&volume, &ways[0]).close();
}

/// Answers each prompt on a terminal of its own; prints all that was shown there, and has the program's exit code.
const TERMINAL: &str = r#"
import os, pty, sys, termios, time
dialogue, words = sys.argv[1].split("\x01")[:-1], sys.argv[2:]
process, terminal = pty.fork()
if process == 0:
    os.execvp(words[0], words)
shown = b""
def read():
    global shown
    try:
        some = os.read(terminal, 4096)
    except OSError:
        some = b""
    shown += some
    return some
for prompt, answer in zip(dialogue[::2], dialogue[1::2]):
    begin = len(shown)
    while prompt.encode() not in shown[begin:]:
        if not read():
            break
    # What is typed before the echo is off would be shown, as everywhere. An answer to a question may be seen.
    while "[y/N]" not in prompt and termios.tcgetattr(terminal)[3] & termios.ECHO:
        time.sleep(0.01)
    os.write(terminal, answer.encode() + b"\n")
while read():
    pass
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"#;

/// Waits for each prompt, and answers it; all that was shown, and the exit code.
fn type_at_terminal(
    host: &Host,
    command: &str,
    arguments: &[&str],
    dialogue: &[(&str, &str)],
) -> (String, i32) {
    let line = host.command(command, arguments);
    let dialogue: String =
        dialogue.iter().map(|(prompt, answer)| format!("{prompt}\u{1}{answer}\u{1}")).collect();
    let mut terminal = std::process::Command::new("timeout");
    terminal.args([&HANG.as_secs().to_string(), "/usr/bin/python3", "-c", TERMINAL, &dialogue]);
    terminal.arg(line.get_program()).args(line.get_args()).env_clear();
    terminal.envs(line.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    let ended = terminal.output().expect("timeout starts");
    let shown = [ended.stdout, ended.stderr].concat();
    (String::from_utf8_lossy(&shown).into_owned(), ended.status.code().expect("an exit code"))
}

pub(crate) fn a_terminal_is_asked_and_shows_nothing(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let host = host.without("S3BD_PASSWORD");
    let typed = |command: &str, arguments: &[&str], dialogue: &[(&str, &str)]| {
        let (shown, code) = type_at_terminal(&host, command, arguments, dialogue);
        assert!(!shown.contains(PASSWORD), "the password was shown: {shown}");
        (shown, code)
    };
    let init = [&volume[..], "--size", "64M"];
    let (shown, code) = typed("init", &init, &[("New password", PASSWORD), ("Once more", "other")]);
    assert!(code == 4 && shown.contains("differ"), "{code}: {shown}");
    let (shown, code) = typed("init", &init, &[("New password", "")]);
    assert!(code == 4 && shown.contains("empty"), "{code}: {shown}");
    assert!(fixture.contents().is_empty(), "a refused command changed the bucket");
    let (shown, code) = typed("init", &init, &[("New password", PASSWORD), ("Once more", PASSWORD)]);
    assert!(code == 0 && shown.contains("made a volume"), "{code}: {shown}");
    let (shown, code) = typed("recover", &[&volume], &[("Password for", PASSWORD)]);
    assert!(code == 0 && shown.contains("everything is in the bucket"), "{code}: {shown}");
    let (shown, code) = typed("recover", &[&volume], &[("Password for", "wrong")]);
    assert!(code == 4 && shown.contains("wrong password"), "{code}: {shown}");
    // Typed or not: it is the same password.
    Host::new(&fixture).open(&volume, &[]).close();
}

const MARKER: &str = "PLAINTEXT-OF-THE-VOLUME";

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The marker once in a block, and over and over; before and after it was uploaded, and after it was read back.
pub(crate) fn neither_plaintext_nor_password_is_stored_or_logged(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let host = host.with("S3BD_LOG", "s3bd=trace,aws_config=debug,aws_smithy_runtime=debug,hyper=debug");
    let arguments = ["--compression", "none"];
    host.init(&volume, "64M");
    let look = |fixture: &Fixture, host: &Host| {
        for (name, bytes) in fixture.contents().into_iter().chain(files_below(&host.state())) {
            for text in [MARKER, PASSWORD] {
                assert!(!holds(&bytes, text), "{text:?} is in {name}");
            }
        }
        let printed = host.printed();
        let secret = fixture.variables().into_iter().find(|(name, _)| *name == "AWS_SECRET_ACCESS_KEY");
        for text in [MARKER, PASSWORD].into_iter().chain(secret.as_ref().map(|(_, secret)| &secret[..])) {
            assert!(!printed.contains(text), "{text:?} was printed");
        }
    };
    let server = host.open(&volume, &[&arguments[..], &["--commit-interval", "1h"]].concat());
    let mut client = super::raw::Raw::connect(&server.socket).expect("a server");
    client.write(5000, MARKER.as_bytes()).expect("a write");
    client.write(1 << 20, MARKER.repeat(10_000).as_bytes()).expect("a write");
    client.flush().expect("a flush");
    look(&fixture, &host);
    server.kill();
    look(&fixture, &host);
    let server = host.open(&volume, &arguments);
    server.close();
    look(&fixture, &host);
    assert!(fixture.contents().values().map(|bytes| bytes.len()).sum::<usize>() > 230_000, "it was uploaded");
    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    let mut client = super::raw::Raw::connect(&server.socket).expect("a server");
    assert!(holds(&client.read(0, 8192).expect("data"), MARKER));
    assert!(holds(&client.read(1 << 20, 1 << 16).expect("data"), MARKER));
    qemu_io(&server.uri, &["write -P 1 0 4k"]);
    server.close();
    look(&fixture, &other);
}

/// So that no derivation takes long.
const CHEAP: [&str; 6] = ["--kdf-memory", "64KiB", "--kdf-passes", "1", "--kdf-lanes", "1"];

pub(crate) fn keys_are_added_listed_changed_and_removed(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.run("init", &[&[&volume[..], "--size", "64M"], &CHEAP[..]].concat()).done();
    let key = |host: &Host, what: &str, arguments: &[&str]| {
        host.run("key", &[&[what, &volume[..]], arguments].concat())
    };
    let bare = Host::new(&fixture).without("S3BD_PASSWORD");
    let typed = |what: &[&str], dialogue: &[(&str, &str)]| {
        let (shown, code) = type_at_terminal(&bare, what[0], &what[1..], dialogue);
        for (prompt, answer) in dialogue {
            assert!(prompt.contains("[y/N]") || !shown.contains(answer), "the secret was shown: {shown}");
        }
        (shown, code)
    };
    key(&host, "remove", &["first", "--yes"]).failed(1, &["no other slot would be left"]);

    let added = key(&host, "add", &["--recovery-key"]).done();
    let recovery = added.stdout.lines().find_map(|line| line.strip_prefix("    ")).expect("a key").to_owned();
    let recover = ["recover", &volume[..]];
    let (shown, code) = typed(&recover, &[("Password for", &recovery.to_lowercase())]);
    assert!(code == 0, "{code}: {shown}");
    let wrong = recovery.replacen(&recovery[1..3], if &recovery[1..3] == "XX" { "YY" } else { "XX" }, 1);
    let (shown, code) = typed(&recover, &[("Password for", &wrong)]);
    assert!(code == 4 && shown.contains("look at group 1 of its eight"), "{code}: {shown}");

    let file = bare.folder().join("key");
    let path = file.display().to_string();
    std::fs::write(&file, [7; 31]).expect("a file");
    key(&host, "add", &["--new-key-file", &path]).failed(4, &["31 bytes", "32 at least"]);
    std::fs::write(&file, [7; 32]).expect("a file");
    key(&host, "add", &["--new-key-file", &path, "--label", "vault"]).done();
    bare.open(&volume, &["--key-file", &path]).close();
    for command in ["fsck", "info", "recover"] {
        bare.run(command, &[&volume, "--key-file", &path]).done();
    }

    let dialogue =
        [("Password for", PASSWORD), ("New password", "another secret"), ("Once more", "another secret")];
    let (shown, code) = typed(&[&["key", "change", &volume[..]], &CHEAP[..]].concat(), &dialogue);
    assert!(code == 0 && shown.contains("is in the place of"), "{code}: {shown}");
    host.fail_to_open(&volume, &[]).failed(4, &["wrong password"]);
    let changed = Host::new(&fixture).with("S3BD_PASSWORD", "another secret");
    let third = changed.with("S3BD_NEW_PASSWORD", "a third secret");
    key(&third, "add", &CHEAP).done();

    let list = key(&bare, "list", &["--json"]).done();
    let list: serde_json::Value = serde_json::from_str(&list.stdout).expect("JSON");
    let mut lines: Vec<_> = list.as_array().expect("a list").iter().collect();
    lines.sort_by_key(|line| line["label"].as_str());
    let kinds: Vec<_> = lines.iter().map(|line| (line["label"].as_str(), line["kind"].as_str())).collect();
    let expected = [
        ("first", "password"),
        ("password", "password"),
        ("recovery key", "recovery-key"),
        ("vault", "key-file"),
    ];
    assert_eq!(kinds, expected.map(|(label, kind)| (Some(label), Some(kind))));
    assert_eq!(lines[0]["memory_bytes"], 65536);
    let shown = key(&bare, "list", &[]).done().stdout;
    assert!(shown.contains("64.0 KiB, 1 passes, 1 lanes") && shown.contains("vault"), "{shown}");

    key(&third, "remove", &["vault"]).failed(2, &["--yes"]);
    key(&third, "remove", &["nothing", "--yes"]).failed(1, &["no key slot", "nothing"]);
    let removed = key(&third, "remove", &["vault", "--yes"]).done();
    // A directory keeps no old versions; the servers of the tests do not say.
    assert_eq!(removed.stderr.contains("old versions"), matches!(kind, Kind::OurS3 { .. }), "{removed:?}");
    bare.fail_to_open(&volume, &["--key-file", &path])
        .failed(4, &["none of the 3 key slots of this volume is for a key file"]);
    let remove = ["key", "remove", &volume[..], "first"];
    let (shown, code) = typed(&remove, &[("Password for", "another secret"), ("[y/N]", "n")]);
    assert!(code == 1 && shown.contains("nothing was changed"), "{code}: {shown}");
    let (shown, code) = typed(&remove, &[("Password for", "another secret"), ("[y/N]", "y")]);
    assert!(code == 0 && shown.contains("the one whose secret was just given"), "{code}: {shown}");
    let (shown, code) = typed(&recover, &[("Password for", &recovery)]);
    assert!(code == 0, "{code}: {shown}");
    let printed = [host.printed(), bare.printed(), third.printed()].concat();
    assert_eq!(printed.matches(&recovery).count(), 1, "a recovery key is shown once");
    for secret in [PASSWORD, "another secret", "a third secret"] {
        assert!(!printed.contains(secret), "{secret:?} was printed");
    }
}

pub(crate) fn what_is_on_the_host_is_its_owners_alone(kind: Kind) {
    use std::os::unix::fs::PermissionsExt;
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 1 0 4M", "flush"]);
    let mode = |path: &std::path::Path| {
        std::fs::symlink_metadata(path).expect("a file").permissions().mode() & 0o777
    };
    assert_eq!(mode(&server.socket), 0o600);
    let (mut folders, mut files) = (vec![host.state()], 0);
    while let Some(folder) = folders.pop() {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        for entry in std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            if entry.file_type().expect("a type").is_dir() {
                folders.push(entry.path());
            } else {
                assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
                files += 1;
            }
        }
    }
    assert!(files > 3, "{files}");
    server.close();
}
