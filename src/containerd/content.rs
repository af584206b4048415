//! Blobs in containerd's content store.
//!
//! ```text
//! ask how far it came ──▶ AlreadyExists: it is there; its labels are added
//!          │
//!          └──▶ so many bytes are there ──▶ the rest, in pieces ──▶ commit, with size, digest and labels
//! ```
//!
//! containerd hashes what it gets, and commits nothing that has another digest. What is left of a transfer that was cut off is
//! continued; if the whole has the wrong digest then, it is thrown away and fetched once more. Who writes the same blob at the same
//! time is waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use peelfs_registry::Digest;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::ContainerdError;
use super::connection::{Answers, Connection, Failed};
use super::messages::FieldMask;
use super::pull_messages::{
    AbortRequest, AddResourceRequest, ContentInfo, ContentInfoRequest, ContentInfoResponse,
    ContentUpdateRequest, ReadRequest, ReadResponse, Resource, WriteRequest, WriteResponse, write_action,
};

/// Labels, by their names.
pub type Labels = BTreeMap<String, String>;

/// Bytes that are sent with one message: far below the longest that containerd takes, and far above what a message costs.
const PIECE: usize = 1 << 20;
/// How long is waited for another writer before it is asked again.
const PAUSE: Duration = Duration::from_millis(200);
const WRITE: &str = "containerd.services.content.v1.Content/Write";
/// containerd's label that says which repositories of a host have a blob.
const SOURCE: &str = "containerd.io/distribution.source.";
/// Longest label that containerd keeps: name and value together, in bytes (package `labels`).
const LONGEST_LABEL: usize = 4096;

/// containerd's content store, as one pull sees it.
#[derive(Clone)]
pub struct Content {
    connection: Connection,
    /// Keeps what is looked at until the image is recorded.
    lease: String,
    /// Where blobs come from.
    host: String,
    /// The label of blobs of this repository, and the repository.
    source: (String, String),
}

impl Content {
    /// That of a connection, which has the lease. Blobs are said to come from that repository of that host.
    pub fn new(connection: Connection, lease: String, host: &str, repository: &str) -> Content {
        // containerd leaves the port out.
        let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let source = format!("{SOURCE}{}", name.map_or(host, |(name, _)| name));
        Content { connection, lease, host: host.to_owned(), source: (source, repository.to_owned()) }
    }

    /// What is known of a blob, which stays from now on; nothing if it is not there.
    pub async fn info(&self, digest: &Digest) -> Result<Option<ContentInfo>, ContainerdError> {
        self.keep("content", digest.as_str()).await?;
        let request = ContentInfoRequest { digest: digest.to_string() };
        let asked = self.connection.call("containerd.services.content.v1.Content/Info", request).await;
        match asked {
            Ok(ContentInfoResponse { info }) => Ok(info),
            Err(failed) if failed.is_not_found() => Ok(None),
            Err(failed) => Err(self.connection.failed(failed)),
        }
    }

    /// A small blob; nothing if it is not there, has not this size, or is damaged.
    pub async fn read(&self, digest: &Digest, size: u64) -> Result<Option<Bytes>, ContainerdError> {
        let is_whole = |info: ContentInfo| u64::try_from(info.size).is_ok_and(|found| found == size);
        if !self.info(digest).await?.is_some_and(is_whole) {
            return Ok(None);
        }
        read(&self.connection, digest, size).await
    }

    /// Sees to it that a blob is there with these labels, and its repository among those that it comes from. `source` gives its bytes
    /// from an offset on; `told` is told how many there are.
    pub async fn put<S, E>(
        &self,
        digest: &Digest,
        size: u64,
        labels: Labels,
        source: impl Fn(u64) -> S,
        told: impl Fn(u64),
    ) -> Result<(), ContainerdError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        ContainerdError: From<E>,
    {
        if let Some(info) = self.info(digest).await? {
            return self.label(info, labels).await;
        }
        let (name, repository) = &self.source;
        let mut new_labels = labels.clone();
        new_labels.insert(name.clone(), repository.clone());
        let reference = format!("layer-{digest}");
        let mut may_begin_anew = true;
        loop {
            let new = NewBlob { reference: &reference, digest, size, labels: &new_labels };
            match self.write(&new, &source, &told).await {
                Ok(_) => return Ok(()),
                Err(Broken::Source(error)) => return Err(error),
                Err(Broken::Containerd { failed, .. }) if failed.is_already_exists() => break,
                Err(Broken::Containerd { failed, .. }) if is_locked(&failed.status) => {
                    tokio::time::sleep(PAUSE).await;
                }
                // What was there of it was something else.
                Err(Broken::Containerd { resumed: true, .. }) if may_begin_anew => {
                    may_begin_anew = false;
                    self.abort(&reference).await?;
                }
                // It says so of a whole blob alone.
                Err(Broken::Containerd { failed, .. })
                    if failed.status.code() == Code::FailedPrecondition =>
                {
                    return Err(ContainerdError::WrongBlob { blob: digest.clone(), host: self.host.clone() });
                }
                Err(Broken::Containerd { failed, .. }) => return Err(self.connection.failed(failed)),
            }
        }
        match self.info(digest).await? {
            Some(info) => self.label(info, labels).await,
            // It came and went: as good as an error, and the next pull finds out.
            None => Ok(()),
        }
    }

    async fn write<S, E>(
        &self,
        new: &NewBlob<'_>,
        source: impl Fn(u64) -> S,
        told: impl Fn(u64),
    ) -> Result<(), Broken>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        ContainerdError: From<E>,
    {
        let total = i64::try_from(new.size).unwrap_or(i64::MAX);
        let mut writer = Writer::open(&self.connection, new, total).await?;
        let resumed = writer.offset > 0;
        let broken = |failed| Broken::Containerd { failed, resumed };
        told(writer.offset as u64);
        let mut pieces = source(writer.offset as u64);
        let mut piece = BytesMut::new();
        let mut ended = false;
        while !ended {
            match pieces.next().await {
                Some(Ok(bytes)) => piece.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(Broken::Source(error.into())),
                None => ended = true,
            }
            while piece.len() >= PIECE || (ended && !piece.is_empty()) {
                let data = piece.split_to(piece.len().min(PIECE)).freeze();
                writer.add(data).await.map_err(broken)?;
                told(writer.offset as u64);
            }
        }
        writer.commit(new, total).await.map_err(broken)
    }

    async fn abort(&self, reference: &str) -> Result<(), ContainerdError> {
        let request = AbortRequest { reference: reference.to_owned() };
        let aborted = self.connection.call("containerd.services.content.v1.Content/Abort", request).await;
        match aborted {
            Err(failed) if !failed.is_not_found() => Err(self.connection.failed(failed)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Adds labels to a blob that is there.
    async fn label(&self, mut info: ContentInfo, labels: Labels) -> Result<(), ContainerdError> {
        let (name, repository) = &self.source;
        let known = info.labels.remove(name).unwrap_or_default();
        let mut added: Labels =
            labels.into_iter().filter(|(key, value)| info.labels.get(key) != Some(value)).collect();
        if !known.split(',').any(|other| other == repository) {
            let mut repositories: Vec<&str> = known.split(',').filter(|other| !other.is_empty()).collect();
            repositories.push(repository);
            repositories.sort_unstable();
            let repositories = repositories.join(",");
            // What is too long is left as it was.
            if name.len() + repositories.len() <= LONGEST_LABEL {
                added.insert(name.clone(), repositories);
            }
        }
        self.set_labels(&info.digest, added).await
    }

    /// Sets these labels of a blob, and leaves the others.
    pub async fn set_labels(&self, digest: &str, labels: Labels) -> Result<(), ContainerdError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = ContentInfo { digest: digest.to_owned(), size: 0, labels };
        let request = ContentUpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        let updated = self.connection.call("containerd.services.content.v1.Content/Update", request).await;
        updated.map(|_: ContentInfoResponse| ()).map_err(|failed| self.connection.failed(failed))
    }

    /// Has the lease keep something, whether it is there or not.
    pub async fn keep(&self, kind: &str, id: &str) -> Result<(), ContainerdError> {
        let resource = Resource { id: id.to_owned(), kind: kind.to_owned() };
        let request = AddResourceRequest { id: self.lease.clone(), resource: Some(resource) };
        let added = self.connection.call("containerd.services.leases.v1.Leases/AddResource", request).await;
        added.map_err(|failed| self.connection.failed(failed))
    }
}

/// A blob of at most so many bytes; nothing if it is not there, is longer, or is damaged.
pub(super) async fn read(
    connection: &Connection,
    digest: &Digest,
    most: u64,
) -> Result<Option<Bytes>, ContainerdError> {
    let mut bytes = BytesMut::new();
    let request = ReadRequest { digest: digest.to_string() };
    let read = async {
        let mut answers: Answers<ReadResponse> =
            connection.read("containerd.services.content.v1.Content/Read", request).await?;
        while let Some(answer) = answers.next().await? {
            if bytes.len() as u64 + answer.data.len() as u64 > most {
                break;
            }
            bytes.extend_from_slice(&answer.data);
        }
        Ok(())
    };
    match read.await {
        Ok(()) => Ok(Some(bytes.freeze()).filter(|bytes| digest.matches(bytes))),
        Err(failed) if Failed::is_not_found(&failed) => Ok(None),
        Err(failed) => Err(connection.failed(failed)),
    }
}

/// A blob that is to be written.
struct NewBlob<'a> {
    reference: &'a str,
    digest: &'a Digest,
    size: u64,
    labels: &'a Labels,
}

/// What ended a transfer.
enum Broken {
    /// Its bytes did not come.
    Source(ContainerdError),
    /// containerd does not take them. `resumed`: some were there before.
    Containerd { failed: Failed, resumed: bool },
}

/// One blob on its way: each message is answered before the next is sent.
struct Writer {
    requests: mpsc::Sender<WriteRequest>,
    answers: Answers<WriteResponse>,
    /// Bytes that are there; never negative.
    offset: i64,
}

impl Writer {
    async fn open(connection: &Connection, new: &NewBlob<'_>, total: i64) -> Result<Writer, Broken> {
        let broken = |failed| Broken::Containerd { failed, resumed: false };
        let (requests, mut receiver) = mpsc::channel(1);
        let first = WriteRequest {
            action: write_action::STAT,
            reference: new.reference.to_owned(),
            total,
            expected: new.digest.to_string(),
            ..WriteRequest::default()
        };
        // It has room for one.
        let _ = requests.send(first).await;
        let requests_sent = stream::poll_fn(move |context| receiver.poll_recv(context));
        let answers = connection.converse(WRITE, requests_sent).await.map_err(broken)?;
        let mut writer = Writer { requests, answers, offset: 0 };
        let offset = writer.answer().await.map_err(broken)?;
        if offset < 0 || offset > total {
            let status = Status::internal(format!("it has {offset} bytes of a blob of {total}"));
            return Err(broken(Failed { method: WRITE, status }));
        }
        writer.offset = offset;
        Ok(writer)
    }

    async fn add(&mut self, data: Bytes) -> Result<(), Failed> {
        // A piece is short.
        let expected = self.offset.saturating_add(data.len() as i64);
        let request = WriteRequest {
            action: write_action::WRITE,
            offset: self.offset,
            data,
            ..WriteRequest::default()
        };
        self.offset = self.exchange(request).await?;
        if self.offset != expected {
            let status = Status::internal(format!("it took {} bytes and not {expected}", self.offset));
            return Err(Failed { method: WRITE, status });
        }
        Ok(())
    }

    async fn commit(mut self, new: &NewBlob<'_>, total: i64) -> Result<(), Failed> {
        let request = WriteRequest {
            action: write_action::COMMIT,
            total,
            expected: new.digest.to_string(),
            offset: self.offset,
            labels: new.labels.clone(),
            ..WriteRequest::default()
        };
        self.exchange(request).await.map(drop)
    }

    async fn exchange(&mut self, request: WriteRequest) -> Result<i64, Failed> {
        // If it hung up, its answer says why.
        let _ = self.requests.send(request).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<i64, Failed> {
        match self.answers.next().await? {
            Some(answer) => Ok(answer.offset),
            None => {
                Err(Failed { method: WRITE, status: Status::unavailable("it ended the transfer of a blob") })
            }
        }
    }
}

/// Whether somebody else writes the blob at this moment.
fn is_locked(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().contains("locked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_who_is_there_already_is_waited_for_and_no_other_trouble() {
        // containerd, package `content/local`: the text of its error.
        let locked = "ref default/1/layer-sha256:00 locked for 1s (since 1970-01-01): unavailable";
        assert!(is_locked(&Status::unavailable(locked)));
        assert!(!is_locked(&Status::unavailable("connection error")));
        assert!(!is_locked(&Status::internal(locked)));
    }
}
