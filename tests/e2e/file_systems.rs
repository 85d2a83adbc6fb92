//! Real file systems with a real tree of files.

use std::{fmt::Write, path::Path};

use super::stage;
use crate::support::{
    disk::{Disk, FileSystem},
    fixture::Kind,
    host::Host,
    run::{run, shell},
};

pub(crate) fn a_tree_copied_to_ext4_is_whole_on_any_host(kind: Kind) {
    tree_is_whole(kind, FileSystem::Ext4, 3000);
}

pub(crate) fn a_tree_copied_to_btrfs_is_whole_on_any_host(kind: Kind) {
    tree_is_whole(kind, FileSystem::Btrfs, 3000);
}

pub(crate) fn fifty_thousand_files_copied_to_ext4_are_whole(kind: Kind) {
    tree_is_whole(kind, FileSystem::Ext4, 50_000);
}

pub(crate) fn fifty_thousand_files_copied_to_btrfs_are_whole(kind: Kind) {
    tree_is_whole(kind, FileSystem::Btrfs, 50_000);
}

fn tree_is_whole(kind: Kind, system: FileSystem, files: usize) {
    let (fixture, host, volume) = stage(kind);
    let source = host.folder().join("source");
    make_tree(&source, files);
    host.init(&volume, "4G");
    let server = host.open(&volume, &["--commit-interval", "2s"]);
    let mut disk = Disk::attach(&server.uri);
    disk.format(system);
    disk.mount();
    let copy = disk.path().join("tree");
    run("rsync", &["-a".as_ref(), source.join("").as_os_str(), copy.join("").as_os_str()]);
    disk.unmount();
    disk.check(system);
    disk.mount();
    assert_same(&source, &copy);
    // Deleting and trimming is use, too.
    let half = format!("find '{}' -type f | sort | awk 'NR % 2' | xargs -d '\\n' rm; sync", copy.display());
    shell(&half);
    run("fstrim", &[disk.path()]);
    shell(&half.replace(&copy.display().to_string(), &source.display().to_string()));
    disk.detach();
    server.close();

    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    let mut disk = Disk::attach(&server.uri);
    disk.check(system);
    disk.mount();
    assert_same(&source, &disk.path().join("tree"));
    disk.detach();
    server.close();
}

/// The sources of the dependencies, as often as it takes.
fn make_tree(folder: &Path, files: usize) {
    std::fs::create_dir_all(folder).expect("a folder");
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .expect("CARGO_HOME or HOME");
    let mut script = format!("cd '{home}/registry/src'; export LC_ALL=C\n");
    writeln!(script, "find . -type f | sort | awk 'NR <= {files}' >'{}.list'", folder.display())
        .expect("text");
    writeln!(
        script,
        "n=$(wc -l <'{0}.list'); [ $n -gt 0 ]; part=0; left={files}\n\
         while [ $left -gt 0 ]; do\n\
         part=$((part + 1)); mkdir '{0}/'$part; head -n $left '{0}.list' >'{0}.part'\n\
         rsync -a --files-from='{0}.part' . '{0}/'$part; left=$((left - n)); done",
        folder.display()
    )
    .expect("text");
    shell(&script);
}

/// Same names, same contents, same links.
pub(crate) fn assert_same(source: &Path, copy: &Path) {
    let words = ["-rlcn".as_ref(), "--delete".as_ref(), "--out-format=%i %n".as_ref()];
    let differing =
        run("rsync", &[&words[..], &[source.join("").as_os_str(), copy.join("").as_os_str()]].concat());
    assert_eq!(differing, "");
    run("diff", &["-r".as_ref(), "--no-dereference".as_ref(), source.as_os_str(), copy.as_os_str()]);
}
