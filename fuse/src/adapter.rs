//! Each request of the kernel, put to the tree as a question. No decisions of its own beyond the protocol's.
//!
//! Three answers tell the kernel something for good, so that it stops asking (`include/uapi/linux/fuse.h`):
//! - an entry with inode number 0 and a life is a name that does not exist, and is cached;
//! - `ENOSYS` to `OPEN` and `OPENDIR`: handles carry no state, open without us and keep what is cached;
//! - `ENOSYS` to `ACCESS`, `FLUSH`, `FSYNC`, `POLL`, `BMAP`: there is nothing that we would do.

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::attr::{self, FOREVER};
use crate::directory;
use crate::errno::Errno;
use crate::handshake::{Gate, NOBODY};
use crate::label::{self, Label};
use crate::mount::MountOptions;
use crate::opens::{Mode, Opens};
use crate::read_reply::ReadReply;
use crate::tree::{DataOrHole, Tree};

/// The largest single request: 256 pages, the most that an unprivileged kernel configuration allows
/// (`/proc/sys/fs/fuse/max_pages_limit`).
const LARGEST_REQUEST: u32 = 1 << 20;

/// How many readahead requests may be under way. fuser's 16 would leave a link with a long round trip idle.
const BACKGROUND_REQUESTS: u16 = 128;

/// Files below this size are not worth the system calls that passing them through costs. Servers of one mount must agree on it
/// (see [`open_records`](crate::open_records)).
const SMALLEST_PASSTHROUGH: u64 = 1 << 20;

/// An inode number and a generation name an inode for ever; ours are never used again for another.
const GENERATION: Generation = Generation(0);

const NO_HANDLE: FileHandle = FileHandle(0);

/// Defines operations that are answered with the same error whatever they are about.
macro_rules! always {
    ($errno:ident: $($operation:ident($($argument:ty),*) $reply:ty;)+) => {
        $(fn $operation(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(fuser::Errno::$errno);
        })+
    };
}

/// A [`Tree`] as fuser's file system.
pub(crate) struct Adapter<T> {
    tree: Arc<T>,
    /// Whether whole files are passed through. Turned off for good when the kernel refuses it.
    passthrough: AtomicBool,
    /// Whether the kernel need not ask when files are opened, once it has been told so.
    may_open_without_us: bool,
    default_permissions: bool,
    /// Value of the attribute with the label, if all files have the same.
    label: Option<Vec<u8>>,
    /// If files can be passed through.
    opens: Option<Opens>,
    opens_directories_without_us: bool,
    gate: Arc<Gate>,
}

impl<T: Tree> Adapter<T> {
    /// An adapter whose threads, once they are told to forget nobody, wait at that gate.
    pub(crate) fn new(tree: Arc<T>, options: &MountOptions, gate: Arc<Gate>) -> Self {
        Adapter {
            tree,
            passthrough: AtomicBool::new(options.passthrough.is_some()),
            may_open_without_us: false,
            default_permissions: options.default_permissions,
            label: options.label.as_ref().map(Label::value),
            opens: options.passthrough.clone().map(Opens::new),
            opens_directories_without_us: false,
            gate,
        }
    }

    /// Puts a question to the tree; a panic in it is an I/O error, because it must cost neither the mount nor
    /// a thread.
    fn ask<'a, R>(&'a self, question: impl FnOnce(&'a T) -> Result<R, Errno>) -> Result<R, Errno> {
        catch_unwind(AssertUnwindSafe(|| question(&self.tree))).unwrap_or_else(|_| {
            tracing::error!("the tree panicked; the request fails with an I/O error");
            Err(Errno::IO)
        })
    }

    fn file_attributes(&self, inode: INodeNo) -> Result<fuser::FileAttr, Errno> {
        self.ask(|tree| tree.attributes(inode.0)).and_then(|attributes| attr::to_kernel(&attributes))
    }

    /// How to open an inode that nobody has open.
    fn choose_mode(&self, inode: u64, flags: OpenFlags, reply: &ReplyOpen) -> Mode {
        // The disk's file system would want aligned buffers (O_DIRECT); ours takes any.
        let is_direct = flags.0 & libc::O_DIRECT != 0;
        if is_direct || !self.passthrough.load(Ordering::Relaxed) {
            return Mode::Cached;
        }
        let Ok(Some(file)) = self.ask(|tree| Ok(tree.whole_file(inode))) else { return Mode::Cached };
        match reply.open_backing(&*file) {
            // Never released: see the head of `opens`.
            Ok(backing) => Mode::Passthrough(backing.into_raw()),
            Err(error) => {
                if !self.passthrough.swap(false, Ordering::Relaxed) {
                    return Mode::Cached;
                }
                tracing::warn!(%error, "the kernel refuses to pass files through (root is needed, and a store that is on no overlay); we read them");
                Mode::Cached
            }
        }
    }

    /// Whether the kernel may do without asking us at opens: nothing is passed through, nor will be.
    fn needs_no_opens(&self) -> bool {
        let is_none_open = || self.opens.as_ref().is_none_or(|opens| !opens.has_passthrough());
        self.may_open_without_us && !self.passthrough.load(Ordering::Relaxed) && is_none_open()
    }

    fn is_worth_passing_through(&self, inode: u64) -> bool {
        self.ask(|tree| tree.attributes(inode))
            .is_ok_and(|attributes| attributes.size >= SMALLEST_PASSTHROUGH)
    }
}

impl<T: Tree> Filesystem for Adapter<T> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        if self.default_permissions {
            // Containers with user namespaces mount us with other owners (an idmapped mount). The kernel refuses
            // to start if this is asked for without default_permissions.
            wanted |= InitFlags::FUSE_ALLOW_IDMAP;
        }
        if self.opens.is_some() {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
            // 1: backing files on an ordinary file system, and an overlay may be stacked on us.
            let possible =
                offered.contains(InitFlags::FUSE_PASSTHROUGH) && config.set_max_stack_depth(1).is_ok();
            if !possible {
                tracing::debug!("this kernel cannot pass files through (Linux 6.9 or newer is needed)");
                *self.passthrough.get_mut() = false;
                self.opens = None;
            }
        }
        self.may_open_without_us = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        if !*self.passthrough.get_mut() {
            wanted |= InitFlags::FUSE_NO_OPEN_SUPPORT;
        }
        let granted = wanted & offered;
        let raised = config.add_capabilities(granted).is_ok()
            && config.set_max_write(LARGEST_REQUEST).is_ok()
            && config.set_max_background(BACKGROUND_REQUESTS).is_ok();
        tracing::debug!(?granted, refused = ?(wanted & !offered), raised, "agreed with the kernel");
        self.opens_directories_without_us = granted.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        Ok(())
    }

    fn forget(&self, _request: &Request, inode: INodeNo, _lookups: u64) {
        // Nobody counts what the kernel remembers: a tree has all its inodes for ever.
        if inode.0 == NOBODY {
            self.gate.pass();
        }
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.ask(|tree| match name.as_bytes() {
            // Asked when an inode is named by a file handle (FUSE_EXPORT_SUPPORT).
            b"." => tree.attributes(parent.0),
            b".." => tree.attributes(tree.parent(parent.0)?),
            name => tree.lookup(parent.0, name),
        });
        match found.and_then(|attributes| attr::to_kernel(&attributes)) {
            Ok(attributes) => reply.entry(&FOREVER, &attributes, GENERATION),
            Err(Errno::NOT_FOUND) => reply.entry(&FOREVER, &attr::absent(), GENERATION),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.file_attributes(inode) {
            Ok(attributes) => reply.attr(&FOREVER, &attributes),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        match self.ask(|tree| tree.symlink_target(inode.0)) {
            Ok(target) if target.len() < libc::PATH_MAX as usize => reply.data(&copied(target)),
            Ok(_) => reply.error(Errno::NAME_TOO_LONG.into()),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::READ_ONLY.into());
        }
        if self.needs_no_opens() {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let cached = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        let is_candidate =
            |opens: &&Opens| opens.has_room_for(inode.0) && self.is_worth_passing_through(inode.0);
        let Some(opens) = self.opens.as_ref().filter(is_candidate) else {
            return reply.opened(NO_HANDLE, cached);
        };
        let handle = FileHandle(opens.handle());
        let choose = || self.choose_mode(inode.0, flags, &reply);
        match opens.open(inode.0, choose) {
            Mode::Cached => reply.opened(handle, cached),
            Mode::Passthrough(number) => {
                // SAFETY: whoever wrote the number down has registered it, and nobody releases it; nor does this, which gives it back.
                let backing = unsafe { reply.wrap_backing(number) };
                // FOPEN_KEEP_CACHE would be refused here: nothing is cached for this handle.
                reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
                backing.into_raw();
            }
        }
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(opens) = &self.opens {
            opens.release(inode.0, handle.0);
        }
        reply.ok();
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let available = match self.ask(|tree| tree.attributes(inode.0)) {
            Ok(attributes) => attributes.size.saturating_sub(offset),
            Err(errno) => return reply.error(errno.into()),
        };
        let length = u32::try_from(available).map_or(size, |available| available.min(size));
        if length == 0 {
            return reply.data(&[]);
        }
        let reply = ReadReply::to_kernel(reply, length);
        // After a panic the reply has been dropped, which has answered it.
        let _ = self.ask(|tree| {
            tree.read(inode.0, offset, length, reply);
            Ok(())
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let whence = match whence {
            libc::SEEK_DATA => DataOrHole::Data,
            libc::SEEK_HOLE => DataOrHole::Hole,
            _ => return reply.error(Errno::INVALID.into()),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::NO_SUCH_OFFSET.into()) };
        let found = self.ask(|tree| tree.seek(inode.0, offset, whence));
        match found.and_then(|found| i64::try_from(found).map_err(|_| Errno::OVERFLOW)) {
            Ok(found) => reply.offset(found),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.opens_directories_without_us {
            return reply.error(fuser::Errno::ENOSYS);
        }
        reply.opened(NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        position: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.ask(|tree| {
            directory::list(tree, inode.0, position, &mut |entry| {
                let Some(kind) = attr::file_type(entry.mode) else { return ControlFlow::Continue(()) };
                let full = reply.add(INodeNo(entry.inode), entry.next, kind, OsStr::from_bytes(entry.name));
                if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        position: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.ask(|tree| {
            directory::list(tree, inode.0, position, &mut |entry| {
                let found = tree.attributes(entry.inode).and_then(|found| attr::to_kernel(&found));
                let attributes = match found {
                    Ok(attributes) => attributes,
                    Err(errno) => {
                        tracing::debug!(inode = entry.inode, %errno, "an entry cannot be shown");
                        return ControlFlow::Continue(());
                    }
                };
                let name = OsStr::from_bytes(entry.name);
                let full = reply.add(attributes.ino, entry.next, name, &FOREVER, &attributes, GENERATION);
                if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        match self.ask(|tree| Ok(tree.statistics())) {
            Ok(statistics) => reply.statfs(
                statistics.blocks,
                statistics.blocks_available,
                statistics.blocks_available,
                statistics.files,
                0,
                statistics.block_size,
                statistics.name_length,
                statistics.block_size,
            ),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn getxattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let label = self.label.as_deref().filter(|_| name.as_bytes() == label::ATTRIBUTE);
        let answer = match label {
            Some(label) => Ok(label),
            None => self.ask(|tree| tree.xattr(inode.0, name.as_bytes())),
        };
        match answer {
            Ok(value) => answer_xattr(value, size, reply),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let mut list = Vec::new();
        if self.label.is_some() {
            list.extend_from_slice(label::ATTRIBUTE);
            list.push(0);
        }
        let listed = self.ask(|tree| {
            tree.xattr_names(inode.0, &mut |name| {
                // What the tree says of it counts for nothing.
                let is_label = self.label.is_some() && name == label::ATTRIBUTE;
                // A name that is empty or cut by a NUL would make the kernel refuse the whole list.
                if !name.is_empty() && !name.contains(&0) && !is_label {
                    list.extend_from_slice(name);
                    list.push(0);
                }
            })
        });
        match listed {
            Ok(()) => answer_xattr(&list, size, reply),
            Err(errno) => reply.error(errno.into()),
        }
    }

    // The kernel asks none of these twice.
    always!(ENOSYS:
        access(INodeNo, AccessFlags) ReplyEmpty;
        flush(INodeNo, FileHandle, LockOwner) ReplyEmpty;
        fsync(INodeNo, FileHandle, bool) ReplyEmpty;
        fsyncdir(INodeNo, FileHandle, bool) ReplyEmpty;
        bmap(INodeNo, u32, u64) ReplyBmap;
        poll(INodeNo, FileHandle, PollNotifier, PollEvents, PollFlags) ReplyPoll;
    );

    always!(ENOTTY: ioctl(INodeNo, FileHandle, IoctlFlags, u32, &[u8], u32) ReplyIoctl;);

    // What would write. The mount is read-only, so the kernel asks none of this unless somebody remounts it.
    always!(EROFS:
        setattr(
            INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<TimeOrNow>, Option<TimeOrNow>,
            Option<SystemTime>, Option<FileHandle>, Option<SystemTime>, Option<SystemTime>, Option<SystemTime>,
            Option<BsdFileFlags>
        ) ReplyAttr;
        mknod(INodeNo, &OsStr, u32, u32, u32) ReplyEntry;
        mkdir(INodeNo, &OsStr, u32, u32) ReplyEntry;
        unlink(INodeNo, &OsStr) ReplyEmpty;
        rmdir(INodeNo, &OsStr) ReplyEmpty;
        symlink(INodeNo, &OsStr, &Path) ReplyEntry;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) ReplyEmpty;
        link(INodeNo, INodeNo, &OsStr) ReplyEntry;
        write(INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>) ReplyWrite;
        create(INodeNo, &OsStr, u32, u32, i32) ReplyCreate;
        setxattr(INodeNo, &OsStr, &[u8], i32, u32) ReplyEmpty;
        removexattr(INodeNo, &OsStr) ReplyEmpty;
        fallocate(INodeNo, FileHandle, u64, u64, i32) ReplyEmpty;
        copy_file_range(
            INodeNo, FileHandle, u64, INodeNo, FileHandle, u64, u64, CopyFileRangeFlags
        ) ReplyWrite;
    );
}

/// Bytes of a table in memory that is there. A table is a mapped file: if the process is killed while the kernel brings a page of it, the
/// request fails, and nobody can answer it any more.
fn copied(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

/// Answers with a value or a list, as `getxattr(2)` has it: `size` 0 asks for the length alone.
fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(&copied(value)),
        Ok(_) => reply.error(Errno::RANGE.into()),
        Err(_) => reply.error(Errno::TOO_BIG.into()),
    }
}
