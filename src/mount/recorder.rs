//! Keeps in the store what a mount reads, while it is served.
//!
//! ```text
//! first touch ──▶ a second later: written ──▶ next news ──▶ two seconds later … at most a minute ──▶ at the end, once more
//! ```
//!
//! So whoever kills the process loses what was touched in the last interval. A mount that nobody reads wakes nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use super::profile::MountedImage;
use crate::error::chain;
use crate::fetch::profile::{MAXIMUM_PATH, Run, TouchedFile, kept};
use crate::store::Store;
use crate::tree::paths::paths_of;
use crate::tree::serve::MergedTree;
use crate::tree::touches::{Touched, Touches};

/// How long news wait to be written, the first time; twice as long each time after.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// How long they wait at most.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// Writes what a mount reads, until it is finished.
pub(super) struct Recorder {
    recording: Arc<Recording>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Recording {
    store: Arc<Store>,
    tree: Arc<MergedTree>,
    image: String,
    manifest: String,
    run: String,
    /// How much was written: files, and bytes of their parts. Neither ever grows less.
    written: Mutex<(usize, u64)>,
}

impl Recorder {
    /// Begins; nothing if what is read is not noted.
    pub(super) fn start(image: &MountedImage<'_>) -> Option<Recorder> {
        image.tree.touches()?;
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let recording = Arc::new(Recording {
            store: image.store.clone(),
            tree: image.tree.clone(),
            image: image.reference.to_string(),
            manifest: image.manifest.to_string(),
            run: format!("{}.{:09}-{}", began.as_secs(), began.subsec_nanos(), std::process::id()),
            written: Mutex::default(),
        });
        let (writing, builder) = (recording.clone(), std::thread::Builder::new().name("peel-profile".into()));
        let thread = builder.spawn(move || {
            // Of this thread alone (setpriority(2), "C library/kernel differences").
            let _ = rustix::process::setpriority_process(None, 10);
            writing.go_on();
        });
        let thread = thread
            .inspect_err(|error| tracing::warn!(%error, "what is read is recorded at the end only"))
            .ok();
        Some(Recorder { recording, thread: Mutex::new(thread) })
    }

    /// Ends it, and writes what was not written yet.
    pub(super) fn finish(&self) {
        let Some(touches) = self.recording.tree.touches() else { return };
        touches.end();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the thread that records what is read panicked");
        }
        self.recording.write(touches);
    }
}

impl Recording {
    fn go_on(&self) {
        let Some(touches) = self.tree.touches() else { return };
        let mut interval = FIRST_INTERVAL;
        while touches.wait_for_news() && touches.wait(interval) {
            self.write(touches);
            interval = (interval * 2).min(LONGEST_INTERVAL);
        }
    }

    /// Writes what was touched so far, if more of it was than when it was written last.
    fn write(&self, touches: &Touches) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let touched = touches.list();
        let parts = touched.iter().flat_map(|touched| &touched.parts);
        let amount = (touched.len(), parts.map(|part| part.end - part.start).fold(0, u64::saturating_add));
        if amount == *written {
            return;
        }
        let run = Run { name: self.run.clone(), files: self.files(touched) };
        match kept::record(&self.store, &self.image, &self.manifest, &run) {
            Ok(()) => *written = amount,
            Err(error) => {
                tracing::warn!(image = self.image, error = %chain(&error), "what the mount reads could not be recorded");
            }
        }
    }

    fn files(&self, touched: Vec<Touched>) -> Vec<TouchedFile> {
        // The kernel counts inodes from 1.
        let number =
            |touched: &Touched| touched.inode.checked_sub(1).and_then(|number| number.try_into().ok());
        let table = self.tree.table();
        let mut paths: HashMap<u32, Vec<u8>> = paths_of(table, touched.iter().filter_map(number).collect());
        // The walk looked at all directories.
        table.release();
        let files = touched.into_iter().filter_map(|touched| {
            let path = paths.remove(&number(&touched)?)?;
            let Touched { milliseconds, parts, .. } = touched;
            (path.len() <= MAXIMUM_PATH).then_some(TouchedFile { path, milliseconds, parts })
        });
        files.collect()
    }
}
