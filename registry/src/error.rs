//! What went wrong on the way to a registry or a layout, told for the person who reads it.
//!
//! An [`Error`] says what was being got (`manifest 3.12`), of which repository, from which host, and why not. Its
//! [`kind`](Error::kind) is for programs (exit codes, errno, fallbacks) and its [`hint`](Error::hint) says what to do next.
//! No error holds a credential, a token, or the query of a URL (signed URLs are credentials).

use std::fmt;

pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What a program does about an [`Error`] depends on its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The repository, tag or blob does not exist, or may not be seen.
    NotFound,
    /// Credentials are missing, wrong or withheld.
    Unauthorized,
    /// The host could not be resolved or connected to, or its certificate is not trusted.
    Unreachable,
    /// The host stopped answering.
    Timeout,
    /// Content does not have the digest it was asked for by.
    DigestMismatch,
    /// A manifest or index that is malformed, ambiguous or of an unsupported kind.
    BadDocument,
    /// No entry of the index is for the platform.
    NoMatchingPlatform,
    /// The host broke the protocol: wrong range, wrong length, body cut again and again.
    BadResponse,
    /// The host refuses ranged reads; the whole blob may still be streamed.
    RangeUnsupported,
    /// More bytes than a document of this kind may have.
    TooLarge,
    /// The host asked to slow down for longer than we may wait.
    RateLimited,
    /// The host failed (5xx).
    Server,
    /// The caller asked for a range outside the blob.
    InvalidRange,
    /// Something on this machine: a layout, a credential file or helper, a certificate.
    Local,
}

/// A failure, with all that is needed to understand it.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    context: Context,
    message: String,
    hint: Option<String>,
    cause: Option<Cause>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: &Context, message: impl Into<String>) -> Error {
        let inner =
            Inner { kind, context: context.clone(), message: message.into(), hint: None, cause: None };
        Error { inner: Box::new(inner) }
    }

    pub(crate) fn with_cause(mut self, cause: impl Into<Cause>) -> Error {
        self.inner.cause = Some(cause.into());
        self
    }

    pub(crate) fn with_optional(mut self, cause: Option<Cause>, hint: Option<String>) -> Error {
        self.inner.cause = cause;
        self.inner.hint = hint;
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether something was being put there, not got from there.
    pub fn is_of_writing(&self) -> bool {
        self.inner.context.is_written
    }

    /// The registry's host, or the directory of the layout.
    pub fn host(&self) -> &str {
        &self.inner.context.host
    }

    /// The repository on that host; empty for a layout.
    pub fn repository(&self) -> &str {
        &self.inner.context.repository
    }

    /// What was being got, such as `manifest 3.12` or `blob sha256:…`.
    pub fn subject(&self) -> &str {
        &self.inner.context.subject
    }

    /// What to do next, if we know.
    pub fn hint(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { context, message, .. } = &*self.inner;
        let verb = if context.is_written { "put" } else { "get" };
        write!(formatter, "cannot {verb} {context}: {message}")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {self}", self.inner.kind)?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(formatter, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.cause.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

/// What was being got or put, and from or to where.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) host: String,
    pub(crate) repository: String,
    pub(crate) subject: String,
    pub(crate) is_written: bool,
}

impl Context {
    /// The same, if it is put there instead of got.
    pub(crate) fn written(self) -> Context {
        Context { is_written: true, ..self }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.subject)?;
        if !self.repository.is_empty() {
            write!(formatter, " of {}", self.repository)?;
        }
        write!(formatter, " {} {}", if self.is_written { "to" } else { "from" }, self.host)
    }
}

/// A text that came from a server, made fit for a terminal and a log: short, and without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).take(300).collect()
}
