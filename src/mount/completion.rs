//! Background completion: all that is missing of a mounted image is fetched while nobody else needs the link.
//!
//! ```text
//! peel mount --complete ─┐
//! peel complete ─────────┴─▶ run/PID.wish ──run/PID.bell is rung──▶ wait, fetch, prove, layer by layer ──▶ run/PID.completion ─▶ peel status
//!                                                                      └─ failed: said once, tried again 30 s later, then twice as long …
//! ```
//!
//! - What is wished is a file, which outlives the process that serves: its successor reads the same one. Who wants something else writes a new one.
//! - How far it is, another file says, written by the process that serves; how much of the image is here, the chunk maps.
//! - The bell is a pipe. All have the number of the process that the mount is known by, as its counters have, and go with the mount.
//! - A mount for which nothing is wished waits for its file, and does nothing else.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe::{self, Receiver};
use tokio::task::AbortHandle;

use super::Mounted;
use crate::error::chain;
use crate::fetch::LayerContent;
use crate::fetch::completion::{CompletionError, Courtesy, QUIET};
use crate::meter::Count;
use crate::store::Store;

/// How long after a failure it is tried again, the first time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// Longest file that is read, in bytes.
const LONGEST: u64 = 4096;
/// Of a reason so many characters are told; JSON may need six bytes for each.
const LONGEST_REASON: usize = 500;

/// What is wished for a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Bytes per second at most; nothing if as fast as it goes.
    pub rate: Option<u64>,
    /// Nothing is fetched until it is wished otherwise.
    pub is_paused: bool,
    /// How often something was wished: whoever asks again wants it to be tried again.
    #[serde(default)]
    pub asked: u64,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is done now.
    pub stage: Stage,
    /// Why nothing comes, on one line, if it failed.
    pub because: Option<String>,
}

impl Progress {
    fn failed(stage: Stage, error: &CompletionError) -> Progress {
        Progress { stage, because: Some(chain(error).chars().take(LONGEST_REASON).collect()) }
    }
}

impl From<Stage> for Progress {
    fn from(stage: Stage) -> Progress {
        Progress { stage, because: None }
    }
}

/// What is done of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Others read over the network.
    Waiting,
    /// What is missing comes.
    Fetching,
    /// As it was wished.
    Paused,
    /// It failed, and will be tried again.
    Retrying,
    /// Nothing more comes: a layer is false.
    Failed,
    /// All is here, and proved as far as it can be.
    Complete,
}

impl Stage {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Waiting => "waiting",
            Stage::Fetching => "fetching",
            Stage::Paused => "paused",
            Stage::Retrying => "retrying",
            Stage::Failed => "failed",
            Stage::Complete => "complete",
        }
    }
}

/// The files of a mount.
#[derive(Clone, Debug)]
pub struct Files {
    wish: PathBuf,
    progress: PathBuf,
    bell: PathBuf,
}

impl Files {
    /// Those of the mount with these counters.
    pub fn beside(counters: &Path) -> Files {
        let [wish, progress, bell] =
            ["wish", "completion", "bell"].map(|extension| counters.with_extension(extension));
        Files { wish, progress, bell }
    }

    /// What is wished; nothing if nothing is, or it cannot be understood.
    pub fn wish(&self) -> Option<Wish> {
        read(&self.wish)
    }

    /// How far it is; nothing if nothing is wished.
    pub fn progress(&self) -> Option<Progress> {
        read(&self.progress)
    }

    /// Has something else be wished: whole, or as it was.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn set_wish(&self, wish: Wish) -> std::io::Result<()> {
        write(&self.wish, &serde_json::to_vec(&wish)?)?;
        ring(&self.bell)
    }

    fn set_progress(&self, progress: &Progress) {
        let written = serde_json::to_vec(progress).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|bytes| write(&self.progress, &bytes)) {
            tracing::debug!(%error, "how far the completion is, is not told");
        }
    }

    /// Removes what a mount has left that is gone.
    pub fn remove(&self) {
        for path in [&self.wish, &self.progress, &self.bell] {
            // Most mounts have none.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    let length = std::fs::metadata(path).ok()?.len();
    if length > LONGEST {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Whole, or as it was.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(&new, bytes)?;
    std::fs::rename(&new, path)
}

/// Hears when the bell is rung.
struct Bell(Receiver);

impl Bell {
    /// Made if it is not there. To be called on a thread of the runtime.
    fn hang(path: &Path) -> std::io::Result<Bell> {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0) {
            // One of the process that served before.
            Err(Errno::EXIST) => {}
            made => made?,
        }
        // As it has a writer in this process, it never ends.
        Ok(Bell(pipe::OpenOptions::new().read_write(true).open_receiver(path)?))
    }

    async fn heard(&self) -> std::io::Result<()> {
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut [0; 64]) {
                // It only looked as if it were.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                rung => return rung.map(drop),
            }
        }
    }
}

/// Whoever hears it looks what is wished. If nobody does, the next one looks before he listens.
fn ring(path: &Path) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let bell = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NXIO) => return Ok(()),
        bell => bell?,
    };
    match rustix::io::write(bell, &[1]) {
        // It was rung often enough.
        Err(Errno::AGAIN) => Ok(()),
        rung => Ok(rung.map(drop)?),
    }
}

/// The work of one mount.
struct Completion {
    layers: Vec<Arc<LayerContent>>,
    store: Arc<Store>,
    files: Files,
    image: String,
    told: Arc<Mutex<Option<Progress>>>,
    prefetch: Option<AbortHandle>,
}

impl Mounted {
    /// From now on does what is wished of completion: `wish`, unless something is wished already, as of a mount that is served on. Returns at
    /// once. To be called once, after [`Mounted::follow_profile`].
    pub fn complete(&self, wish: Option<Wish>) {
        let brought = &self.prepared.brought;
        let files = Files::beside(self.prepared.counters.path());
        if let (Some(wish), None) = (wish, files.wish())
            && let Err(error) = files.set_wish(wish)
        {
            return tracing::warn!(%error, "the image is not fetched in the background");
        }
        let completion = Completion {
            layers: self.prepared.tree.layers().to_vec(),
            store: brought.store.clone(),
            files,
            image: brought.reference.to_string(),
            told: Arc::default(),
            prefetch: self.prefetch.get().cloned(),
        };
        match brought.threads.handle() {
            Ok(threads) => {
                let work = threads.spawn(async move {
                    if let Err(error) = completion.follow().await {
                        tracing::warn!(%error, "what is wished of completion is not known any more");
                    }
                });
                let _ = self.completion.set(work.abort_handle());
            }
            Err(error) => tracing::warn!(%error, "the image is not fetched in the background"),
        }
    }
}

impl Completion {
    /// Does what is wished, for as long as it is not aborted.
    async fn follow(self) -> std::io::Result<()> {
        let bell = Bell::hang(&self.files.bell)?;
        loop {
            let wish = self.files.wish();
            let work = async {
                match wish {
                    None => std::future::pending().await,
                    Some(Wish { is_paused: true, .. }) => self.tell(Stage::Paused),
                    Some(Wish { rate, .. }) => self.complete(rate).await,
                }
                std::future::pending::<()>().await;
            };
            let changed = async {
                loop {
                    bell.heard().await?;
                    if self.files.wish() != wish {
                        return Ok::<_, std::io::Error>(());
                    }
                }
            };
            tokio::select! {
                () = work => {}
                changed = changed => changed?,
            }
        }
    }

    /// Fetches all that is missing, again and again until it is here or can never be.
    async fn complete(&self, rate: Option<u64>) {
        while self.prefetch.as_ref().is_some_and(|prefetch| !prefetch.is_finished()) {
            self.tell(Stage::Waiting);
            tokio::time::sleep(QUIET).await;
        }
        let mut pause = FIRST_PAUSE;
        let mut was_told = false;
        loop {
            let failed = match self.complete_once(rate).await {
                Ok(()) => return self.tell(Stage::Complete),
                Err(error) => error,
            };
            if failed.is_final() {
                tracing::warn!(image = %self.image, error = %chain(&failed), "the image never becomes complete");
                return self.tell(Progress::failed(Stage::Failed, &failed));
            }
            if !std::mem::replace(&mut was_told, true) {
                tracing::warn!(image = %self.image, error = %chain(&failed), "the image is not complete yet; this is tried again later");
            }
            self.tell(Progress::failed(Stage::Retrying, &failed));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn complete_once(&self, rate: Option<u64>) -> Result<(), CompletionError> {
        let store = self.store.clone();
        let missed = move || store.counters().all().map_or(0, |counts| counts.get(Count::ChunksMissing));
        let teller = Teller { files: self.files.clone(), told: self.told.clone() };
        let tell =
            move |is_quiet| teller.tell(if is_quiet { Stage::Fetching } else { Stage::Waiting }.into());
        let mut courtesy = Courtesy::new(rate, Arc::new(missed), tell);
        for layer in &self.layers {
            layer.complete(&mut courtesy).await?;
        }
        Ok(())
    }

    fn tell(&self, progress: impl Into<Progress>) {
        Teller { files: self.files.clone(), told: self.told.clone() }.tell(progress.into());
    }
}

/// Writes how far it is, if that is news.
struct Teller {
    files: Files,
    told: Arc<Mutex<Option<Progress>>>,
}

impl Teller {
    fn tell(&self, progress: Progress) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() != Some(&progress) {
            self.files.set_progress(&progress);
            *told = Some(progress);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wished_is_what_was_written_last_and_what_makes_no_sense_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::beside(&directory.path().join("run/42.counters"));
        assert_eq!((files.wish(), files.progress()), (None, None));
        for wish in [Wish::default(), Wish { rate: Some(7), is_paused: true, asked: 2 }] {
            files.set_wish(wish).unwrap();
            assert_eq!(files.wish(), Some(wish));
        }
        let because = "\u{1}".repeat(LONGEST_REASON);
        for progress in [Stage::Fetching.into(), Progress { stage: Stage::Retrying, because: Some(because) }]
        {
            files.set_progress(&progress);
            assert_eq!(files.progress(), Some(progress));
        }
        for text in ["", "{}", "null", "[1]", &"9".repeat(5000)] {
            std::fs::write(&files.wish, text).unwrap();
            assert_eq!(files.wish(), None, "{text}");
        }
        files.remove();
        assert_eq!(std::fs::read_dir(directory.path().join("run")).unwrap().count(), 0);
    }
}
