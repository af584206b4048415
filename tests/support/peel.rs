//! Runs the program under test as a user would: the binary, a store of its own, directories to mount at. Whatever happens to
//! the test, what it mounted is unmounted and what it started is killed.

use rustix::mount::{UnmountFlags, unmount};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// No command of a test takes as long; one that does is hung and is killed, which fails the test.
const WATCHDOG: Duration = Duration::from_secs(180);

/// A store, and the program used with it.
pub struct Peel {
    directory: TempDir,
    store: PathBuf,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Outcome {
    /// [`None`] if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Default for Peel {
    fn default() -> Self {
        Peel::new()
    }
}

impl Peel {
    pub fn new() -> Peel {
        let directory = tempfile::Builder::new().prefix("peel-test-").tempdir().expect("making a directory");
        let store = directory.path().join("store");
        fs::create_dir(directory.path().join("home")).expect("making a directory");
        Peel { directory, store }
    }

    pub fn store(&self) -> &Path {
        &self.store
    }

    /// A directory of this test, removed at its end.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// What further commands find in `$HOME`.
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// `peel ARGUMENTS --store …`, hermetic: no settings of whoever runs the tests reach it.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_peel")), arguments)
    }

    /// The same, of another program.
    pub fn command_of<S: AsRef<OsStr>>(&self, program: &Path, arguments: &[S]) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.home());
        command.args(arguments).arg("--store").arg(&self.store).stdin(Stdio::null());
        command
    }

    /// The program, as it might be after another version of it was installed: the same, and yet another file.
    pub fn other_program(&self) -> PathBuf {
        let path = self.scratch().join("peel-installed-since");
        // By another process: a child of another test, which holds what this one has open for writing from its fork to its exec, would make the
        // program busy.
        let mut copy = Command::new("sh");
        // In one step, as others may do the same at this moment.
        let script = r#"cp "$0" "$1.$$" && printf since >>"$1.$$" && mv "$1.$$" "$1""#;
        copy.args(["-c", script, env!("CARGO_BIN_EXE_peel")]).arg(&path);
        let outcome = run_to_end(copy, self.scratch());
        assert_eq!(outcome.code, Some(0), "copying the program: {}", outcome.stderr);
        path
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Outcome {
        run_to_end(self.command(arguments), self.scratch())
    }

    /// `peel unmount`, which must succeed. A child of another test holds this process's descriptors from its fork to its exec: for
    /// that instant the mount may be in use, so that is tried again.
    #[track_caller]
    pub fn unmount(&self, path: &Path) {
        let arguments = ["unmount", path.to_str().expect("temporary names are UTF-8")];
        let mut before = String::new();
        for _ in 0..100 {
            let outcome = self.run(&arguments);
            if outcome.code == Some(0) {
                return;
            }
            assert!(outcome.stderr.contains(" is in use"), "{outcome:?} after {before:?}");
            before = outcome.stderr;
            std::thread::yield_now();
        }
        panic!("{} stays in use", path.display());
    }

    /// Runs a command that must succeed; returns its output.
    #[track_caller]
    pub fn succeed<S: AsRef<OsStr> + std::fmt::Debug>(&self, arguments: &[S]) -> String {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, Some(0), "peel {arguments:?}\n{}{}", outcome.stdout, outcome.stderr);
        outcome.stdout
    }

    /// The JSON that a command prints.
    #[track_caller]
    pub fn json<S: AsRef<OsStr> + std::fmt::Debug>(&self, arguments: &[S]) -> serde_json::Value {
        let output = self.succeed(arguments);
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("peel {arguments:?}: {error}: {output}"))
    }

    /// Runs a command and kills it (-9) after that time, if it still runs.
    pub fn killed_after(&self, instant: Duration, arguments: &[&str]) {
        let mut command = self.command(arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting peel");
        std::thread::sleep(instant);
        kill_and_wait(child.id() as i32);
        wait_or_kill(child, "peel");
    }

    /// Whatever happened to the store, all in it is what it should be.
    #[track_caller]
    pub fn is_clean(&self) {
        let report = self.json(&["check", "--json"]);
        assert_eq!(report["findings"], serde_json::json!([]));
    }

    /// An empty directory to mount at.
    pub fn mount_point(&self) -> PathBuf {
        tempfile::Builder::new()
            .prefix("mount-")
            .tempdir_in(self.scratch())
            .expect("making a directory")
            .keep()
    }

    /// Mounts an image, which must succeed.
    #[track_caller]
    pub fn mount(&self, reference: &str) -> Mount<'_> {
        self.mount_with(reference, &[])
    }

    #[track_caller]
    pub fn mount_with(&self, reference: &str, options: &[&str]) -> Mount<'_> {
        let mount = Mount { peel: self, path: self.mount_point() };
        let path = mount.path.to_str().expect("temporary names are UTF-8").to_owned();
        let mut arguments = vec!["mount", reference, path.as_str()];
        arguments.extend(options);
        self.succeed(&arguments);
        assert!(is_mount_point(&mount.path), "peel mount returned before {path} was mounted");
        mount
    }

    /// The processes that serve mounts of this store, without those that hold them.
    pub fn servers(&self) -> Vec<i32> {
        self.processes(&[]).into_iter().filter(|process| !is_holder(*process)).collect()
    }

    /// Those of them that were started by a command with this word.
    pub fn servers_of(&self, word: &str) -> Vec<i32> {
        self.processes(&[word]).into_iter().filter(|process| !is_holder(*process)).collect()
    }

    /// The processes that hold mounts of this store, and have them served.
    pub fn holders(&self) -> Vec<i32> {
        self.processes(&[]).into_iter().filter(|process| is_holder(*process)).collect()
    }

    /// Those of them whose mounts were asked for by a command with this word.
    pub fn holders_of(&self, word: &str) -> Vec<i32> {
        self.processes(&[word]).into_iter().filter(|process| is_holder(*process)).collect()
    }

    /// All processes of the program that work with this store, if their command lines have these words.
    fn processes(&self, words: &[&str]) -> Vec<i32> {
        let store = self.store.as_os_str().as_bytes();
        processes()
            .into_iter()
            .filter(|(process, command_line)| {
                let executable = fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
                let has =
                    |word: &[u8]| command_line.split(|byte| *byte == 0).any(|argument| argument == word);
                let is_ours =
                    executable.as_os_str().as_bytes().starts_with(env!("CARGO_BIN_EXE_peel").as_bytes())
                        || executable.starts_with(self.scratch());
                is_ours && has(store) && words.iter().all(|word| has(word.as_bytes()))
            })
            .map(|(process, _)| process)
            .collect()
    }

    /// Waits until no process serves or holds a mount of this store any more; fails if one does not end.
    #[track_caller]
    pub fn wait_for_servers_to_end(&self) {
        for process in self.processes(&[]) {
            assert!(has_ended(process, WATCHDOG), "process {process} goes on after unmounting");
        }
    }

    /// Waits for what another process is about to do; fails if it is not done for long.
    #[track_caller]
    pub fn wait_for(&self, is_done: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !is_done() {
            assert!(begun.elapsed() < WATCHDOG, "it is not done");
            std::thread::yield_now();
        }
    }

    /// `kill -9` to every process that serves a mount of this store, and to those that hold them, so that nobody goes on; returns once
    /// they are gone. Gives how many served.
    pub fn kill_servers(&self) -> usize {
        self.kill_servers_of(&[])
    }

    /// The same, of the commands that have these words.
    pub fn kill_servers_of(&self, words: &[&str]) -> usize {
        let servers = self.processes(words).into_iter().filter(|process| !is_holder(*process)).count();
        // Holders first: they would have the mount served again.
        for process in self.processes(words).into_iter().filter(|process| is_holder(*process)) {
            kill_and_wait(process);
        }
        for process in self.processes(words) {
            kill_and_wait(process);
        }
        servers
    }
}

impl Drop for Peel {
    fn drop(&mut self) {
        for mount in mounts_below(self.scratch()) {
            let _ = unmount(&mount, UnmountFlags::DETACH);
        }
        self.kill_servers();
    }
}

/// A mounted image; unmounted when dropped.
pub struct Mount<'a> {
    peel: &'a Peel,
    path: PathBuf,
}

impl Mount<'_> {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    /// `peel unmount`, which must succeed and leave nothing mounted.
    #[track_caller]
    pub fn unmount(self) {
        self.peel.unmount(&self.path);
        assert!(!is_mount_point(&self.path), "{} is still mounted", self.path.display());
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        while is_mount_point(&self.path) && unmount(&self.path, UnmountFlags::DETACH).is_ok() {}
    }
}

/// Instants at which to kill what takes that long if it is not disturbed, from its first on: 8, or as many as `PEEL_CRASHES` says.
pub fn instants(whole: Duration) -> impl Iterator<Item = Duration> {
    let count = std::env::var("PEEL_CRASHES").ok().and_then(|count| count.parse().ok()).unwrap_or(8);
    (0..count).map(move |part| whole * part / count)
}

/// The same in no order.
pub fn shuffled_instants(whole: Duration) -> Vec<Duration> {
    let mut instants: Vec<_> = instants(whole).enumerate().collect();
    instants.sort_by_key(|(number, _)| (*number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    instants.into_iter().map(|(_, instant)| instant).collect()
}

/// How long that takes.
pub fn duration_of(work: impl FnOnce()) -> Duration {
    let started = std::time::Instant::now();
    work();
    started.elapsed()
}

/// Runs a command to its end, output and all; one that hangs is killed. Output goes through files, so that a process left
/// in the background cannot hold the test by keeping a pipe open.
pub fn run_to_end(mut command: Command, scratch: &Path) -> Outcome {
    let capture = || tempfile::tempfile_in(scratch).expect("making a file for output");
    let (stdout, stderr) = (capture(), capture());
    command.stdout(stdout.try_clone().expect("sharing a file"));
    command.stderr(stderr.try_clone().expect("sharing a file"));
    let child = command.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    let status = wait_or_kill(child, &format!("{command:?}"));
    Outcome { code: status.code(), stdout: contents(stdout), stderr: contents(stderr) }
}

fn contents(mut file: File) -> String {
    use std::io::Seek;
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("reading captured output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a process; fails the test if the watchdog had to kill it.
pub fn wait_or_kill(mut child: Child, what: &str) -> std::process::ExitStatus {
    let process = child.id() as i32;
    let (ended, watched) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let hung = watched.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout);
        if hung {
            kill(process);
        }
        hung
    });
    let status = child.wait().expect("waiting for a child");
    drop(ended);
    let hung = watchdog.join().expect("the watchdog does not panic");
    assert!(!hung, "{what} hung; ended by signal {:?}", status.signal());
    status
}

fn kill(process: i32) {
    if let Some(process) = rustix::process::Pid::from_raw(process) {
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    }
}

/// `kill -9`, then waits for its end.
pub fn kill_and_wait(process: i32) {
    kill(process);
    has_ended(process, WATCHDOG);
}

/// Waits for the end of any process, by a descriptor of it.
fn has_ended(process: i32, patience: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let Some(id) = Pid::from_raw(process) else { return true };
    let Ok(handle) = pidfd_open(id, PidfdFlags::empty()) else { return true };
    let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
    poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&patience)).is_ok_and(|ready| ready > 0)
}

/// Whether a process is there to hold a mount, and not to serve it.
fn is_holder(process: i32) -> bool {
    fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim_end() == "peel-holder")
}

fn processes() -> Vec<(i32, Vec<u8>)> {
    let entries = fs::read_dir("/proc").expect("reading /proc");
    entries
        .filter_map(|entry| {
            let process: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((process, fs::read(format!("/proc/{process}/cmdline")).ok()?))
        })
        .collect()
}

/// Mount points at or below a directory, the deepest first.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("reading the mount table");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    points.reverse();
    points
}

pub fn is_mount_point(path: &Path) -> bool {
    mounts_below(path).iter().any(|point| point == path)
}
