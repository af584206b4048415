//! Brings what a program needs as soon as its beginning is read: its interpreter and its libraries, and theirs, each round in one go. Its
//! loader would ask for one after the other, and each that is missing costs a round trip.
//!
//! ```text
//! beginning of a program is read ──▶ what it needs ──▶ found in the tree ──▶ missing of it: asked for, all at once
//!                                         ▲                                         │
//!                                         └───── what came may be a program, too ◀──┘
//! ```
//!
//! - A library is looked for where its program says, where the interpreter and other libraries were found, and in the usual directories; what
//!   is not there is left to the loader, who knows more. The tree tells that without asking anybody.
//! - What is brought is a guess: it counts as such until it is read, and [`Ledger`](crate::fetch::prefetch) says how much of it may be
//!   unread. So who looks at programs without running them soon has no more than he reads.
//! - Each file is looked at once for as long as the mount lives, and all of them in the end cost no more than there are programs in the tree.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures_util::StreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;

use crate::fetch::ThreadStarter;
use crate::fetch::prefetch::{Wanted, bring_soon};
use crate::table::format::InodeRecord;
use crate::tree::paths::{find, paths_of};
use crate::tree::program::{Needs, Unknown, needs_of};
use crate::tree::serve::MergedTree;

/// Programs that are looked at at the same time.
const AT_ONCE: usize = 8;
/// How often parts of a program are fetched to be looked at.
const MOST_FETCHES: usize = 6;
/// A library is brought whole if it is not longer than this; else its beginning, in which the names that are looked up lie as a rule, and
/// what of it is relocated.
const WHOLE: u64 = 2 << 20;
/// So much of that.
const BEGINNING: u64 = 1 << 20;
/// Most that is brought of what is relocated.
const MOST_RELOCATED: u64 = 4 << 20;
/// The loader's list of libraries (ld.so(8)).
const LOADER_CACHE: &[u8] = b"etc/ld.so.cache";
/// Where libraries are looked for if nobody says more (ld.so(8)), and where programs are without a `PATH` (execvp(3), and what shells take).
const LIBRARY_DIRECTORIES: [&[u8]; 4] = [b"lib64", b"usr/lib64", b"lib", b"usr/lib"];
const PROGRAM_DIRECTORIES: [&[u8]; 6] =
    [b"usr/local/sbin", b"usr/local/bin", b"usr/sbin", b"usr/bin", b"sbin", b"bin"];

/// What brings the needs of the programs of a tree; it runs from the first one on.
pub(super) struct Following(Arc<OnceLock<Option<Task>>>);

/// The task that does so, and what tells it of programs.
struct Task {
    programs: UnboundedSender<u64>,
    handle: AbortHandle,
}

/// From now on, what the programs of the tree need is brought. To be called once for a tree.
pub(super) fn begin(tree: &Arc<MergedTree>, threads: &ThreadStarter) -> Following {
    let following = Arc::new(OnceLock::new());
    let (task, threads) = (following.clone(), threads.clone());
    // The tree holds what it calls.
    let weak = Arc::downgrade(tree);
    tree.tell_of_programs(move |program| {
        let start = || {
            let starting = threads
                .handle()
                .inspect_err(|error| tracing::warn!(%error, "what programs need is not brought"));
            let (tree, threads) = (weak.upgrade()?, starting.ok()?);
            let (sender, receiver) = unbounded_channel();
            Some(Task { programs: sender, handle: threads.spawn(follow(tree, receiver)).abort_handle() })
        };
        if let Some(task) = task.get_or_init(start) {
            // Where it has ended, nothing more is brought.
            let _ = task.programs.send(program);
        }
    });
    Following(following)
}

impl Following {
    /// Ends it, with the requests that it made.
    pub(super) fn end(&self) {
        if let Some(Some(task)) = self.0.get() {
            task.handle.abort();
        }
    }
}

/// Brings what the programs need whose numbers come, until nobody sends any more.
async fn follow(tree: Arc<MergedTree>, programs: UnboundedReceiver<u64>) {
    let seeker = Seeker { tree, seen: Mutex::default(), directories: Mutex::default() };
    let programs = futures_util::stream::unfold(programs, |mut programs| async move {
        programs.recv().await.map(|program| (program, programs))
    });
    programs.for_each_concurrent(AT_ONCE, |program| seeker.follow_one(program)).await;
}

struct Seeker {
    tree: Arc<MergedTree>,
    /// What was looked at, or is being.
    seen: Mutex<BTreeSet<u32>>,
    /// Where libraries were found.
    directories: Mutex<Vec<Vec<u8>>>,
}

/// A file that may be a program.
struct Candidate {
    /// Its number in the table.
    inode: u32,
    /// From the root, if that is known.
    path: Option<Vec<u8>>,
}

impl Seeker {
    /// Brings what that program needs, which the kernel knows by that number, and what that needs.
    async fn follow_one(&self, program: u64) {
        let Some(inode) = program.checked_sub(1).and_then(|inode| u32::try_from(inode).ok()) else { return };
        let mut round = vec![Candidate { inode, path: None }];
        if !self.is_new(inode) {
            return;
        }
        while !round.is_empty() {
            let mut next = Vec::new();
            let mut wanted = Vec::new();
            for candidate in &round {
                let Some(needs) = self.needs(candidate.inode).await else { continue };
                let record = self.tree.table().inode(candidate.inode);
                wanted.extend(record.into_iter().flat_map(|record| self.relocated(record, &needs)));
                next.extend(self.found(candidate, &needs));
            }
            wanted.extend(next.iter().flat_map(|candidate| self.beginning(candidate.inode)));
            bring_soon(self.tree.layers(), wanted).await;
            round = next;
        }
    }

    fn is_new(&self, inode: u32) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(inode)
    }

    /// What a program needs; nothing if it is none, or what it says cannot be had.
    async fn needs(&self, inode: u32) -> Option<Needs> {
        let record = self.tree.table().inode(inode)?;
        if record.mode.get() & libc::S_IFMT != libc::S_IFREG {
            return None;
        }
        for _ in 0..MOST_FETCHES {
            match needs_of(record.size.get(), |part| self.tree.read_here(record, part)) {
                Ok(needs) => return Some(needs),
                Err(Unknown::NoProgram) => return None,
                Err(Unknown::Missing(part)) => bring_soon(self.tree.layers(), self.parts(record, part)).await,
            }
        }
        None
    }

    /// Where in the layers that part of a file lies.
    fn parts(&self, record: &InodeRecord, part: Range<u64>) -> Vec<Wanted> {
        let layer = usize::from(record.layer.get());
        let whole = record.size.get();
        let part = part.start.min(whole)..part.end.min(whole);
        self.tree.decoded_ranges_of(record, part).into_iter().map(|range| (layer, range)).collect()
    }

    fn beginning(&self, inode: u32) -> Vec<Wanted> {
        let Some(record) = self.tree.table().inode(inode) else { return Vec::new() };
        let size = record.size.get();
        self.parts(record, 0..if size <= WHOLE { size } else { BEGINNING })
    }

    /// What is relocated of a program that is not brought whole.
    fn relocated(&self, record: &InodeRecord, needs: &Needs) -> Vec<Wanted> {
        if record.size.get() <= WHOLE {
            return Vec::new();
        }
        let mut left = MOST_RELOCATED;
        let affordable = needs.relocated.iter().take_while(|part| {
            let rest = left.checked_sub(part.end - part.start);
            left = rest.unwrap_or(0);
            rest.is_some()
        });
        affordable.flat_map(|part| self.parts(record, part.clone())).collect()
    }

    /// Those of the files that a program needs which are in the tree and were not looked at yet.
    fn found(&self, program: &Candidate, needs: &Needs) -> Vec<Candidate> {
        let mut found = Vec::new();
        for interpreter in &needs.interpreters {
            let named = if interpreter.contains(&b'/') {
                self.find(interpreter)
            } else {
                PROGRAM_DIRECTORIES.iter().find_map(|directory| self.find(&joined(directory, interpreter)))
            };
            found.extend(named);
        }
        let is_linked = !needs.libraries.is_empty();
        if is_linked && !needs.interpreters.is_empty() {
            found.extend(self.find(LOADER_CACHE));
        }
        // The interpreter lies with the library that every program needs.
        self.remember(&found);
        let search = self.search(program, needs);
        for library in needs.libraries.iter().filter(|_| is_linked) {
            let named = if library.contains(&b'/') {
                self.find(library)
            } else {
                search.iter().find_map(|directory| self.find(&joined(directory, library)))
            };
            found.extend(named);
        }
        self.remember(&found);
        self.tree.table().release();
        found.retain(|candidate| self.is_new(candidate.inode));
        found
    }

    /// The regular file of that path.
    fn find(&self, path: &[u8]) -> Option<Candidate> {
        let (inode, path) = find(self.tree.table(), path)?;
        let record = self.tree.table().inode(inode)?;
        let is_file = record.mode.get() & libc::S_IFMT == libc::S_IFREG;
        is_file.then_some(Candidate { inode, path: Some(path) })
    }

    /// Libraries are looked for where these are, from now on.
    fn remember(&self, found: &[Candidate]) {
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        for directory in found.iter().filter_map(|candidate| parent(candidate.path.as_deref()?)) {
            let is_known = directories.iter().any(|known| known == directory);
            if !is_known && directory != b"etc" && directories.len() < MOST_DIRECTORIES {
                directories.push(directory.to_vec());
            }
        }
    }

    /// The directories in which the libraries of a program are looked for.
    fn search(&self, program: &Candidate, needs: &Needs) -> Vec<Vec<u8>> {
        const ORIGIN: [&[u8]; 2] = [b"$ORIGIN", b"${ORIGIN}"];
        let origin = |directory: &[u8]| {
            ORIGIN.iter().find_map(|name| directory.strip_prefix(*name).map(<[u8]>::to_vec))
        };
        let needs_origin = needs.search.iter().any(|directory| origin(directory).is_some());
        let path = match &program.path {
            None if needs_origin => {
                paths_of(self.tree.table(), [program.inode].into()).remove(&program.inode)
            }
            path => path.clone(),
        };
        let own = needs.search.iter().filter_map(|directory| match origin(directory) {
            Some(rest) => Some([parent(path.as_deref()?)?, &rest].concat()),
            None => Some(directory.clone()),
        });
        let known = self.directories.lock().unwrap_or_else(PoisonError::into_inner).clone();
        own.chain(known).chain(LIBRARY_DIRECTORIES.map(<[u8]>::to_vec)).collect()
    }
}

/// Directories in which libraries were found that are remembered.
const MOST_DIRECTORIES: usize = 16;

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}

/// The directory that a path from the root is in.
fn parent(path: &[u8]) -> Option<&[u8]> {
    let end = path.iter().rposition(|byte| *byte == b'/')?;
    path.get(..end)
}
