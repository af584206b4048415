//! The async runtime, started by whoever needs it first: to mount an image that is known takes none of it, and its threads take
//! longer to start than all that such a mount reads.
//!
//! ```text
//! idle ──handle()──▶ running ──the owner is dropped──▶ ended
//! ```

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that speak to the network. Ends them when it is dropped, which must not happen on one of them.
pub struct NetworkThreads(ThreadStarter);

/// What gives access to them, and keeps nothing alive.
#[derive(Clone)]
pub struct ThreadStarter {
    stage: Arc<Mutex<Stage>>,
    at_start: fn(),
}

enum Stage {
    Idle,
    Running(Runtime),
    Ended,
}

impl NetworkThreads {
    /// None yet. Each thread begins with `at_start`.
    pub fn new(at_start: fn()) -> NetworkThreads {
        NetworkThreads(ThreadStarter { stage: Arc::new(Mutex::new(Stage::Idle)), at_start })
    }

    /// For those who will need them.
    pub fn starter(&self) -> &ThreadStarter {
        &self.0
    }
}

impl Drop for NetworkThreads {
    fn drop(&mut self) {
        let last = std::mem::replace(&mut *self.0.stage(), Stage::Ended);
        // Waits for what they are doing; who asks for them meanwhile is told that they have ended.
        drop(last);
    }
}

impl ThreadStarter {
    /// Starts them unless they run.
    ///
    /// # Errors
    /// If the system gives no threads or descriptors; if they have ended.
    pub fn handle(&self) -> io::Result<Handle> {
        let mut stage = self.stage();
        if matches!(*stage, Stage::Idle) {
            let mut threads = Builder::new_multi_thread();
            threads.worker_threads(2).thread_name("peel-network").on_thread_start(self.at_start);
            *stage = Stage::Running(threads.enable_all().build()?);
        }
        match &*stage {
            Stage::Running(runtime) => Ok(runtime.handle().clone()),
            _ => Err(io::Error::other("the network's threads have ended")),
        }
    }

    /// Those that run.
    pub fn running(&self) -> Option<Handle> {
        match &*self.stage() {
            Stage::Running(runtime) => Some(runtime.handle().clone()),
            _ => None,
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        // If starting them panicked, the stage is still the one before.
        self.stage.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_start_when_they_are_first_needed_and_end_with_their_owner() {
        let threads = NetworkThreads::new(|| {});
        let starter = threads.starter().clone();
        assert!(starter.running().is_none());
        let (sender, receiver) = std::sync::mpsc::channel();
        starter.handle().unwrap().spawn(async move { sender.send(1) });
        assert_eq!(receiver.recv(), Ok(1));
        assert!(starter.running().is_some());
        drop(threads);
        assert!(starter.running().is_none() && starter.handle().is_err());
    }
}
