//! A served volume as a block device of this machine, with a file system on it.
//!
//! There need not be a kernel NBD device: nbdfuse makes a file of the volume, a loop device with direct I/O a disk of the
//! file. Flush, trim and zero reach the server. Everything is taken down when a test fails, also over a server that is dead.
//!
//! The mounts of a test are seen by that test alone: mkfs.btrfs looks at every loop device that is mounted, and gives up
//! over one whose server another test has just killed.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};
use tempfile::TempDir;
use tokio::time::Instant;

use super::{
    host::HANG,
    run::{output, run},
};

/// Another process may take the loop device that was free.
const LOOP_TRIES_MAX: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Btrfs,
}

/// The block device.
pub struct Disk {
    fuse: Child,
    folder: TempDir,
    loop_device: Option<String>,
    mounted: bool,
}

impl Disk {
    /// Attaches what is served at `uri`.
    pub fn attach(uri: &str) -> Self {
        keep_mounts_private();
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["fuse", "mount"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let file = folder.path().join("fuse/disk");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "nbdfuse"]).arg(&file).arg(uri);
        let log = std::fs::File::create(folder.path().join("nbdfuse.log")).expect("a file");
        let fuse = command.stdin(Stdio::null()).stderr(log).spawn().expect("setpriv starts");
        let mut disk = Self { fuse, folder, loop_device: None, mounted: false };
        let since = Instant::now();
        // The file must not be touched before it is there.
        while !is_mounted(&disk.fuse_folder()) {
            assert!(since.elapsed() < HANG, "nbdfuse does not mount");
            if disk.fuse.try_wait().expect("a child").is_some() {
                let log = std::fs::read_to_string(disk.folder.path().join("nbdfuse.log"));
                panic!("nbdfuse ended: {}", log.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        disk.loop_device = Some(take_loop_device(&file));
        disk
    }

    fn fuse_folder(&self) -> PathBuf {
        self.folder.path().join("fuse")
    }

    /// Where the file system is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// The block device's path.
    pub fn device(&self) -> &str {
        self.loop_device.as_deref().expect("it is attached")
    }

    /// Makes a file system.
    pub fn format(&self, system: FileSystem) {
        match system {
            FileSystem::Ext4 => run("mkfs.ext4", &["-q", "-F", self.device()]),
            FileSystem::Btrfs => run("mkfs.btrfs", &["-q", "-f", self.device()]),
        };
    }

    /// Mounts what is on it; a journal is replayed.
    pub fn mount(&mut self) {
        // Without a barrier's answer nothing counts as written, whatever the distribution's defaults.
        run("mount", &[self.device(), &self.path().display().to_string()]);
        self.mounted = true;
    }

    /// Unmounts.
    pub fn unmount(&mut self) {
        run("umount", &[self.path()]);
        self.mounted = false;
    }

    /// Has the file system's own program check it; it has to be unmounted.
    pub fn check(&self, system: FileSystem) {
        match system {
            FileSystem::Ext4 => run("e2fsck", &["-fn", self.device()]),
            FileSystem::Btrfs => run("btrfs", &["check", "--readonly", "--check-data-csum", self.device()]),
        };
    }

    /// Takes it down; every step has to succeed.
    pub fn detach(mut self) {
        if self.mounted {
            self.unmount();
        }
        let device = self.loop_device.take().expect("it is attached");
        run("losetup", &["-d", &device]);
        // The loop device lets go of the file a moment later.
        let since = Instant::now();
        while !output("umount", &[self.fuse_folder()]).status.success() {
            assert!(since.elapsed() < HANG, "the loop device keeps its file");
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = self.fuse.wait().expect("a child");
        assert!(status.success(), "nbdfuse: {status}");
    }

    /// Takes it down over a server that is dead.
    pub fn abandon(self) {}
}

impl Drop for Disk {
    fn drop(&mut self) {
        let try_to = |program: &str, arguments: &[&str]| {
            Command::new(program)
                .args(arguments)
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        let (mount, fuse) = (self.path().display().to_string(), self.fuse_folder().display().to_string());
        if self.mounted && !try_to("umount", &[&mount]) {
            try_to("umount", &["-l", &mount]);
        }
        if let Some(device) = self.loop_device.take() {
            try_to("losetup", &["-d", &device]);
        }
        if is_mounted(Path::new(&fuse)) {
            try_to("umount", &["-l", &fuse]);
        }
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

/// Gives this thread, and what it starts, a mount namespace without other people's loop devices. It ends with the last of
/// them, and all its mounts with it.
pub fn keep_mounts_private() {
    thread_local!(static PRIVATE: Cell<bool> = const { Cell::new(false) });
    if PRIVATE.replace(true) {
        return;
    }
    // SAFETY: no table of file descriptors is unshared, only mounts.
    #[expect(unsafe_code, reason = "rustix offers this one call for all kinds of namespaces")]
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("a mount namespace: the tests run as root");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private mounts");
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").expect("a list of mounts");
    for line in mounts.lines().rev().filter(|line| line.starts_with("/dev/loop")) {
        let folder = line.split(' ').nth(1).expect("where it is mounted");
        unmount(folder, UnmountFlags::DETACH).expect("it is mounted");
    }
}

fn is_mounted(folder: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("a list of mounts");
    let folder = folder.display().to_string();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(&folder))
}

fn take_loop_device(file: &Path) -> String {
    for _ in 0..LOOP_TRIES_MAX {
        let arguments = ["--show", "-f", "--direct-io=on", &file.display().to_string()];
        let taken = output("losetup", &arguments);
        if taken.status.success() {
            return String::from_utf8_lossy(&taken.stdout).trim().to_owned();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no loop device: {}", String::from_utf8_lossy(&output("losetup", &["-f"]).stderr));
}
