//! The corpus of the fuzzer, and every input that it has found a fault with: each once, on every run. `tests/fuzz/` has
//! the programs that look for more.

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Panics anywhere, also in a task of the server that nobody waits for.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn run(name: &str, target: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in folder.read_dir().expect("a corpus") {
        let path = entry.expect("a file").path();
        let bytes = std::fs::read(&path).expect("a file");
        target(&bytes);
        // What is cut off is as common as what is changed.
        target(&bytes[..bytes.len() / 2]);
        assert_eq!(PANICS.load(Relaxed), 0, "{}", path.display());
        inputs += 1;
    }
    assert!(inputs > 0, "no corpus of {name}");
}

/// One test: what panics in a server's task is counted for the process.
#[test]
fn every_input_of_the_corpus_is_harmless() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Relaxed);
        report(panic);
    }));
    run("header", targets::header);
    run("slot", targets::slot);
    run("claim", targets::claim);
    run("manifest", targets::manifest);
    run("index", targets::index);
    run("page", targets::page);
    run("local", targets::local);
    run("names", targets::names);
    run("log_record", targets::log_record);
    run("log_segment", targets::log_segment);
    run("nbd_handshake", targets::nbd_handshake);
    run("nbd_requests", targets::nbd_requests);
}
