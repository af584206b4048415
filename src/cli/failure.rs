//! An error told to the person who reads it, and the exit code that a script reads.
//!
//! | code | means |
//! | --- | --- |
//! | 0 | done |
//! | 1 | something else |
//! | 2 | the command line cannot be read |
//! | 3 | the image, tag, blob or mount does not exist |
//! | 4 | credentials are missing or refused |
//! | 5 | the registry cannot be reached, fails, or took too long |
//! | 6 | content is not what it should be: a digest, a document, an archive |
//! | 7 | this machine: the mount point, FUSE, permissions |
//! | 8 | the store: the disk is full, permissions, damage |
//! | 130 | interrupted |

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use peelfs::cache::CacheError;
use peelfs::changes::{ChangesError, WriteError as WriteDifferenceError};
use peelfs::commit::CommitError;
use peelfs::compose::{ComposeError, DocumentError};
use peelfs::containerd::ContainerdError;
use peelfs::convert::ConvertError;
use peelfs::directory::DirectoryError;
use peelfs::fetch::FetchError;
use peelfs::fetch::archive::ArchiveError;
use peelfs::fetch::extract::ExtractError;
use peelfs::fetch::index::IndexError;
use peelfs::fetch::profile::format::ProfileError;
use peelfs::image::origin::ResolveError;
use peelfs::layer::stream::StreamError;
use peelfs::layer::write::WriteError;
use peelfs::mount::ImageMountError;
use peelfs::mount::extract::ImageExtractError;
use peelfs::mount::writable::WritableError;
use peelfs::push::PushError;
use peelfs::store::StoreError;
use peelfs_fuse::{MountError, UnmountError};
use peelfs_registry::ErrorKind;

use super::asking::AskError;

/// Exit code of a process that SIGINT would have ended (128 and its number, as shells say).
pub const INTERRUPTED: u8 = 130;

/// What was asked for does not exist.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotFound(pub String);

/// What is mounted cannot go.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InUse(pub String);

/// Options that do not go together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Tells the error with its causes and a hint, and gives the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let mut out = anstream::stderr().lock();
    let mut told = String::new();
    for (depth, cause) in error.chain().enumerate() {
        let text = cause.to_string();
        // Some errors end with the text of their cause.
        if depth > 0 && told.ends_with(&text) {
            continue;
        }
        let lead = if depth == 0 { "peel: " } else { "  because: " };
        // If not even this can be written there is nobody to tell.
        let _ = writeln!(out, "{lead}{text}");
        told = text;
    }
    if let Some(hint) = error.chain().find_map(hint) {
        let _ = writeln!(out, "  hint: {hint}");
    }
    ExitCode::from(code(error))
}

fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    let of_registry = || registry_error(error)?.hint().map(str::to_owned);
    let of_containerd = || as_type::<ContainerdError>(error)?.hint();
    of_registry().or_else(of_containerd)
}

/// The error as that type, also if it is boxed.
fn as_type<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    error.downcast_ref().or_else(|| error.downcast_ref::<Box<T>>().map(|boxed| &**boxed))
}

fn registry_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a peelfs_registry::Error> {
    if let Some(IndexError::Registry(inner)) = as_type(error) {
        return Some(inner);
    }
    if let Some(ResolveError::Registry(inner)) = as_type(error) {
        return Some(inner);
    }
    if let Some(ConvertError::Registry(inner)) = convert_error(error) {
        return Some(inner);
    }
    if let Some(PushError::Registry(inner)) = as_type(error) {
        return Some(inner);
    }
    if let Some(ContainerdError::Registry(inner)) = as_type(error) {
        return Some(inner);
    }
    if let Some(StreamError::Input(inner)) = as_type(error) {
        return inner.downcast_ref();
    }
    if let Some(FetchError::Source { cause, .. }) = fetch_error(error) {
        return cause.downcast_ref();
    }
    as_type(error)
}

fn convert_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a ConvertError> {
    match as_type(error) {
        Some(PushError::Convert(inner)) => Some(inner),
        _ => as_type(error),
    }
}

fn fetch_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a FetchError> {
    match as_type(error) {
        Some(ExtractError::Fetch(inner)) => Some(inner),
        _ => as_type(error),
    }
}

/// The exit code of an error.
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of_cause).unwrap_or(1)
}

fn code_of_cause(error: &(dyn Error + 'static)) -> Option<u8> {
    if let Some(error) = registry_error(error) {
        return Some(match error.kind() {
            ErrorKind::NotFound | ErrorKind::NoMatchingPlatform => 3,
            ErrorKind::Unauthorized => 4,
            ErrorKind::DigestMismatch | ErrorKind::BadDocument | ErrorKind::TooLarge => 6,
            ErrorKind::Local => 7,
            _ => 5,
        });
    }
    if as_type::<NotFound>(error).is_some() {
        return Some(3);
    }
    if as_type::<Usage>(error).is_some() {
        return Some(2);
    }
    if as_type::<InUse>(error).is_some() {
        return Some(7);
    }
    if let Some(error) = as_type::<AskError>(error) {
        return Some(error.code());
    }
    if as_type::<ProfileError>(error).is_some() {
        return Some(6);
    }
    if as_type::<MountError>(error).is_some() || as_type::<UnmountError>(error).is_some() {
        return Some(7);
    }
    if as_type::<StoreError>(error).is_some() {
        return Some(8);
    }
    if let Some(StreamError::Sink(inner)) = as_type(error)
        && inner.is::<StoreError>()
    {
        return Some(8);
    }
    match as_type::<ImageMountError>(error) {
        Some(ImageMountError::Unknown { .. } | ImageMountError::Platform { .. }) => return Some(3),
        Some(ImageMountError::Writable(WritableError::Store { .. })) => return Some(8),
        Some(ImageMountError::Writable(_) | ImageMountError::Mount(_) | ImageMountError::Threads { .. }) => {
            return Some(7);
        }
        Some(ImageMountError::Merge { .. }) => return Some(6),
        _ => {}
    }
    match as_type::<WritableError>(error) {
        // Its cause tells more.
        Some(WritableError::Store { .. }) | None => {}
        Some(_) => return Some(7),
    }
    match as_type::<CommitError>(error) {
        Some(CommitError::NothingChanged { .. }) => return Some(1),
        Some(CommitError::ParentGone { .. } | CommitError::NotMounted { .. }) => return Some(3),
        // Its cause tells more.
        Some(CommitError::Write(_) | CommitError::Records(_)) | None => {}
        Some(CommitError::Store(_)) => return Some(8),
        Some(CommitError::Image(_) | CommitError::Document { .. }) => return Some(6),
        Some(_) => return Some(7),
    }
    match as_type::<ComposeError>(error) {
        Some(ComposeError::Gone { .. }) => return Some(3),
        Some(ComposeError::Store(_) | ComposeError::Document(DocumentError::Records { .. })) => {
            return Some(8);
        }
        Some(ComposeError::Image(_) | ComposeError::Document(DocumentError::Unusable { .. })) => {
            return Some(6);
        }
        // Their causes tell more.
        Some(ComposeError::Cache(_) | ComposeError::Tree(_)) | None => {}
    }
    match as_type::<DirectoryError>(error) {
        Some(DirectoryError::WithoutLayers { .. }) => return Some(1),
        Some(DirectoryError::NotExtracted { .. }) => return Some(3),
        Some(DirectoryError::NotPermitted { .. } | DirectoryError::Attribute { .. }) => return Some(7),
        Some(
            DirectoryError::Evicted { .. }
            | DirectoryError::NoRoom
            | DirectoryError::Table { .. }
            | DirectoryError::Store(_),
        ) => return Some(8),
        // Its cause tells more.
        Some(DirectoryError::Content { .. }) | None => {}
    }
    match as_type::<ArchiveError>(error) {
        Some(ArchiveError::Missing { .. }) => return Some(3),
        Some(
            ArchiveError::Unproved { .. }
            | ArchiveError::WithoutFraming { .. }
            | ArchiveError::Evicted { .. }
            | ArchiveError::Write(_),
        ) => return Some(1),
        Some(ArchiveError::Poisoned { .. }) => return Some(6),
        Some(ArchiveError::Framing { .. } | ArchiveError::DiffId { .. } | ArchiveError::Read { .. }) => {
            return Some(8);
        }
        Some(ArchiveError::Store(inner)) => return code_of_cause(inner),
        None => {}
    }
    match as_type::<ChangesError>(error) {
        // Transparent: they are no causes.
        Some(ChangesError::Cache(inner)) => return code_of_cause(inner),
        Some(ChangesError::Store(inner)) => return code_of_cause(inner),
        Some(ChangesError::Write(WriteDifferenceError::Headers { .. })) => return Some(6),
        Some(ChangesError::Write(WriteDifferenceError::Content { .. })) => return Some(8),
        Some(ChangesError::Absent { .. } | ChangesError::Missing { .. }) => return Some(3),
        Some(ChangesError::Poisoned { .. } | ChangesError::Merge(_)) => return Some(6),
        Some(ChangesError::Table(_) | ChangesError::Record { .. }) => return Some(8),
        _ => {}
    }
    match as_type::<CacheError>(error) {
        Some(CacheError::Unknown { .. }) => return Some(3),
        Some(CacheError::Ambiguous { .. } | CacheError::InvalidName { .. } | CacheError::Nothing(_)) => {
            return Some(2);
        }
        Some(CacheError::InUse { .. } | CacheError::NameTaken { .. }) => return Some(7),
        Some(CacheError::Store(_) | CacheError::WithoutData { .. } | CacheError::ParentGone { .. }) => {
            return Some(8);
        }
        Some(_) | None => {}
    }
    if let Some(ImageExtractError::NoSuchPath { .. }) = as_type(error) {
        return Some(3);
    }
    match as_type::<PushError>(error) {
        Some(PushError::Unknown { .. } | PushError::NoIndex { .. } | PushError::Absent { .. }) => {
            return Some(3);
        }
        Some(PushError::Destination { .. }) => return Some(2),
        Some(PushError::Difference { .. }) => return Some(1),
        Some(PushError::Image(_) | PushError::Renamed { .. }) => return Some(6),
        Some(PushError::Store(_)) => return Some(8),
        // Their causes tell more.
        Some(PushError::Registry(_) | PushError::Blob { .. } | PushError::Convert(_)) | None => {}
    }
    match as_type::<ContainerdError>(error) {
        Some(ContainerdError::Namespace { .. }) => return Some(2),
        Some(
            ContainerdError::DiffId { .. } | ContainerdError::WrongBlob { .. } | ContainerdError::Image(_),
        ) => return Some(6),
        Some(error @ ContainerdError::Call { .. }) if error.is_full() => return Some(8),
        Some(ContainerdError::Connect { .. } | ContainerdError::Call { .. }) => return Some(7),
        Some(ContainerdError::Interrupted) => return Some(INTERRUPTED),
        Some(ContainerdError::NoSnapshot { .. } | ContainerdError::Task { .. }) => return Some(1),
        // Its cause tells more.
        Some(ContainerdError::Registry(_)) | None => {}
    }
    match fetch_error(error) {
        Some(FetchError::Source { .. }) | None => {}
        Some(FetchError::Store { .. } | FetchError::Checkpoint { .. }) => return Some(8),
        Some(FetchError::Deadline { .. }) => return Some(5),
        Some(FetchError::Threads { .. } | FetchError::NoSource { .. }) => return Some(7),
        Some(_) => return Some(6),
    }
    match as_type::<ExtractError>(error) {
        Some(ExtractError::Poisoned { .. }) => return Some(6),
        Some(ExtractError::Evicted | ExtractError::Store(_)) => return Some(8),
        // Their causes tell more.
        Some(_) | None => {}
    }
    match as_type::<IndexError>(error) {
        Some(IndexError::Store(_)) => return Some(8),
        // Its cause tells more.
        Some(IndexError::Registry(_) | IndexError::Stream(_)) | None => {}
        Some(_) => return Some(6),
    }
    match convert_error(error) {
        Some(ConvertError::Destination { .. } | ConvertError::TocImage { .. }) => return Some(2),
        Some(ConvertError::SmallBlob { .. } | ConvertError::Scratch { .. } | ConvertError::Copy { .. }) => {
            return Some(7);
        }
        Some(ConvertError::NothingToIndex { .. }) => return Some(1),
        Some(ConvertError::NoProfile { .. }) => return Some(3),
        // Their causes tell more.
        Some(
            ConvertError::Registry(_)
            | ConvertError::Read { .. }
            | ConvertError::Write { .. }
            | ConvertError::Store { .. },
        )
        | None => {}
        Some(_) => return Some(6),
    }
    match as_type::<WriteError>(error) {
        Some(WriteError::Spool(_) | WriteError::Output(_) | WriteError::Compress(_)) => return Some(7),
        Some(WriteError::Arrange(_) | WriteError::TooLarge { .. } | WriteError::TocTooLong { .. }) => {
            return Some(6);
        }
        None => {}
    }
    if let Some(StreamError::Sink(inner)) = as_type(error)
        && inner.is::<std::io::Error>()
    {
        return Some(7);
    }
    if let Some(StreamError::Checkpoint(_)) = as_type(error) {
        return Some(8);
    }
    if as_type::<StreamError>(error).is_some() {
        return Some(6);
    }
    match as_type::<ResolveError>(error) {
        Some(ResolveError::Registry(_)) | None => None,
        Some(_) => Some(6),
    }
}
