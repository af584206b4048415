//! containerd's snapshots service: each call a few lines, the snapshotter does the work on a thread that may wait.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream;
use hyper::body::Incoming;
use hyper::{Request, Response};
use prost::Message;
use tonic::body::Body;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::metrics::Metrics;
use crate::containerd::messages::{
    CleanupRequest, CommitRequest, CreateRequest, Info, InfoResponse, KeyRequest, ListRequest, ListResponse,
    Mount, MountsResponse, Timestamp, UpdateRequest, UsageResponse,
};
use crate::cri::proxy::{self, ImageService};
use crate::error::chain;
use crate::snapshotter::{self, DiskUsage, SnapshotKind, Snapshotter, SnapshotterError};

/// What comes before the name of a method in the path of its calls.
const PREFIX: &str = "/containerd.services.snapshots.v1.Snapshots/";
/// Snapshots in one message of a list: a label has 4 KiB at most, and a message 4 MiB.
const LISTED_AT_ONCE: usize = 100;

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    snapshotter: Arc<Snapshotter>,
    images: ImageService,
    metrics: Arc<Metrics>,
}

/// What tells for a log which snapshot a request concerns.
trait Concerning {
    /// Its key or name; empty if it concerns none.
    fn snapshot(&self) -> &str;
}

macro_rules! concerning {
    ($($request:ty: $snapshot:expr;)*) => {
        $(impl Concerning for $request {
            fn snapshot(&self) -> &str {
                let of: fn(&$request) -> &str = $snapshot;
                of(self)
            }
        })*
    };
}

concerning! {
    CreateRequest: |request| &request.key;
    KeyRequest: |request| &request.key;
    CommitRequest: |request| &request.key;
    UpdateRequest: |request| request.info.as_ref().map_or("", |info| &info.name);
    CleanupRequest: |_| "";
    ListRequest: |_| "";
}

impl Service {
    pub fn new(snapshotter: Arc<Snapshotter>, images: ImageService, metrics: Arc<Metrics>) -> Service {
        Service { snapshotter, images, metrics }
    }

    /// Answers a call.
    pub async fn answer(&self, call: Request<Incoming>) -> Response<Body> {
        if call.uri().path().starts_with(proxy::PREFIX) {
            return self.images.answer(call).await;
        }
        let method = call.uri().path().strip_prefix(PREFIX).unwrap_or_default().to_owned();
        match method.as_str() {
            "Prepare" => {
                let prepare = |all: &Snapshotter, request: CreateRequest| {
                    all.prepare(&request.key, &request.parent, &request.labels).map(mounts_response)
                };
                self.unary("Prepare", call, prepare).await
            }
            "View" => {
                let view = |all: &Snapshotter, request: CreateRequest| {
                    all.view(&request.key, &request.parent, &request.labels).map(mounts_response)
                };
                self.unary("View", call, view).await
            }
            "Mounts" => {
                let mounts =
                    |all: &Snapshotter, request: KeyRequest| all.mounts(&request.key).map(mounts_response);
                self.unary("Mounts", call, mounts).await
            }
            "Commit" => {
                let commit = |all: &Snapshotter, request: CommitRequest| {
                    all.commit(&request.name, &request.key, &request.parent, &request.labels)
                };
                self.unary("Commit", call, commit).await
            }
            "Remove" => self.unary("Remove", call, |all, request: KeyRequest| all.remove(&request.key)).await,
            "Stat" => {
                let stat = |all: &Snapshotter, request: KeyRequest| all.stat(&request.key).map(info_response);
                self.unary("Stat", call, stat).await
            }
            "Update" => {
                let update = |all: &Snapshotter, request: UpdateRequest| {
                    let info = request.info.unwrap_or_default();
                    let paths = request.update_mask.unwrap_or_default().paths;
                    all.update(&info.name, &info.labels, &paths).map(info_response)
                };
                self.unary("Update", call, update).await
            }
            "Usage" => {
                let usage =
                    |all: &Snapshotter, request: KeyRequest| all.usage(&request.key).map(usage_response);
                self.unary("Usage", call, usage).await
            }
            "Cleanup" => self.unary("Cleanup", call, |all, _: CleanupRequest| all.clean_up()).await,
            "List" => self.list(call).await,
            _ => Status::unimplemented("there is no such method").into_http(),
        }
    }

    async fn unary<Q, A, F>(&self, name: &'static str, call: Request<Incoming>, work: F) -> Response<Body>
    where
        Q: Message + Concerning + Default + 'static,
        A: Message + Default + 'static,
        F: FnOnce(&Snapshotter, Q) -> Result<A, SnapshotterError> + Send + 'static,
    {
        let handler = Handler { service: self.clone(), name, work: Some(work), answers: PhantomData };
        Grpc::new(ProstCodec::default()).unary(handler, call).await
    }

    async fn list(&self, call: Request<Incoming>) -> Response<Body> {
        let handler = List { service: self.clone() };
        Grpc::new(ProstCodec::default()).server_streaming(handler, call).await
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

/// One call, whose work blocks.
struct Handler<A, F> {
    service: Service,
    name: &'static str,
    work: Option<F>,
    answers: PhantomData<fn() -> A>,
}

impl<Q, A, F> UnaryService<Q> for Handler<A, F>
where
    Q: Concerning + Send + 'static,
    A: Send + 'static,
    F: FnOnce(&Snapshotter, Q) -> Result<A, SnapshotterError> + Send + 'static,
{
    type Response = A;
    type Future = Answer<A>;

    fn call(&mut self, request: tonic::Request<Q>) -> Answer<A> {
        let (service, name, work) = (self.service.clone(), self.name, self.work.take());
        Box::pin(async move {
            // It is called once, for it was made for this call.
            let work = work.ok_or_else(|| Status::internal("a call was made twice"))?;
            service.blocking(name, request.into_inner(), work).await.map(tonic::Response::new)
        })
    }
}

struct List {
    service: Service,
}

impl ServerStreamingService<ListRequest> for List {
    type Response = ListResponse;
    type ResponseStream = stream::Iter<std::vec::IntoIter<Result<ListResponse, Status>>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: tonic::Request<ListRequest>) -> Self::Future {
        let service = self.service.clone();
        Box::pin(async move {
            let list = |all: &Snapshotter, request: ListRequest| all.list(&request.filters);
            let all = service.blocking("List", request.into_inner(), list).await?;
            let infos: Vec<Info> = all.into_iter().map(info).collect();
            let messages: Vec<_> =
                infos.chunks(LISTED_AT_ONCE).map(|infos| Ok(ListResponse { info: infos.to_vec() })).collect();
            Ok(tonic::Response::new(stream::iter(messages)))
        })
    }
}

impl Service {
    /// Does the work of a call on a thread that may wait; counts it, and what the log says meanwhile tells which call and which snapshot
    /// it is about.
    async fn blocking<Q: Concerning + Send + 'static, T: Send + 'static>(
        &self,
        method: &'static str,
        request: Q,
        work: impl FnOnce(&Snapshotter, Q) -> Result<T, SnapshotterError> + Send + 'static,
    ) -> Result<T, Status> {
        let begun = Instant::now();
        let snapshotter = self.snapshotter.clone();
        let done = tokio::task::spawn_blocking(move || {
            let call = tracing::info_span!("call", method, snapshot = request.snapshot());
            call.in_scope(|| work(&snapshotter, request).map_err(|error| status(&error)))
        });
        let answer = done.await.unwrap_or_else(|error| Err(Status::internal(format!("{method}: {error}"))));
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        self.metrics.called(method, code_name(code), begun.elapsed());
        answer
    }
}

/// A code as metrics of gRPC name it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::InvalidArgument => "InvalidArgument",
        Code::Unavailable => "Unavailable",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::Internal => "Internal",
        _ => "Unknown",
    }
}

/// An error as containerd understands it (package `errdefs`).
fn status(error: &SnapshotterError) -> Status {
    let code = match error {
        SnapshotterError::NotFound { .. } => Code::NotFound,
        SnapshotterError::AlreadyExists { .. } => Code::AlreadyExists,
        SnapshotterError::FailedPrecondition { .. } => Code::FailedPrecondition,
        SnapshotterError::InvalidArgument { .. } | SnapshotterError::Filter(_) => Code::InvalidArgument,
        SnapshotterError::Unavailable { .. } | SnapshotterError::Owners { .. } => Code::Unavailable,
        SnapshotterError::Store(error) if error.is_full() => Code::ResourceExhausted,
        SnapshotterError::Store(_) => Code::Unknown,
    };
    let text = chain(error);
    match code {
        Code::Unavailable | Code::ResourceExhausted | Code::Unknown => {
            tracing::error!(error = text, "a call failed")
        }
        _ => tracing::debug!(error = text, "a call was refused"),
    }
    Status::new(code, text)
}

fn mounts_response(mounts: Vec<snapshotter::Mount>) -> MountsResponse {
    let mounts = mounts.into_iter().map(|mount| Mount {
        kind: mount.kind.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    });
    MountsResponse { mounts: mounts.collect() }
}

fn info_response(found: snapshotter::Info) -> InfoResponse {
    InfoResponse { info: Some(info(found)) }
}

fn info(info: snapshotter::Info) -> Info {
    Info {
        name: info.name,
        parent: info.parent,
        kind: match info.kind {
            SnapshotKind::View => 1,
            SnapshotKind::Active => 2,
            SnapshotKind::Committed => 3,
        },
        created_at: Some(timestamp(info.created_at)),
        updated_at: Some(timestamp(info.updated_at)),
        labels: info.labels,
    }
}

fn timestamp(nanoseconds: i64) -> Timestamp {
    const SECOND: i64 = 1_000_000_000;
    // The rest is less than a second's nanoseconds.
    Timestamp { seconds: nanoseconds.div_euclid(SECOND), nanos: nanoseconds.rem_euclid(SECOND) as i32 }
}

fn usage_response(usage: DiskUsage) -> UsageResponse {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    UsageResponse { size: number(usage.bytes), inodes: number(usage.inodes) }
}
