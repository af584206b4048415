//! containerd's snapshots service: each call a few lines, the snapshotter does the work on a thread that may wait.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream;
use hyper::body::Incoming;
use hyper::{Request, Response};
use prost::Message;
use tonic::body::Body;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

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
}

impl Service {
    pub fn new(snapshotter: Arc<Snapshotter>, images: ImageService) -> Service {
        Service { snapshotter, images }
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
                self.unary("prepare", call, prepare).await
            }
            "View" => {
                let view = |all: &Snapshotter, request: CreateRequest| {
                    all.view(&request.key, &request.parent, &request.labels).map(mounts_response)
                };
                self.unary("view", call, view).await
            }
            "Mounts" => {
                let mounts =
                    |all: &Snapshotter, request: KeyRequest| all.mounts(&request.key).map(mounts_response);
                self.unary("mounts", call, mounts).await
            }
            "Commit" => {
                let commit = |all: &Snapshotter, request: CommitRequest| {
                    all.commit(&request.name, &request.key, &request.parent, &request.labels)
                };
                self.unary("commit", call, commit).await
            }
            "Remove" => self.unary("remove", call, |all, request: KeyRequest| all.remove(&request.key)).await,
            "Stat" => {
                let stat = |all: &Snapshotter, request: KeyRequest| all.stat(&request.key).map(info_response);
                self.unary("stat", call, stat).await
            }
            "Update" => {
                let update = |all: &Snapshotter, request: UpdateRequest| {
                    let info = request.info.unwrap_or_default();
                    let paths = request.update_mask.unwrap_or_default().paths;
                    all.update(&info.name, &info.labels, &paths).map(info_response)
                };
                self.unary("update", call, update).await
            }
            "Usage" => {
                let usage =
                    |all: &Snapshotter, request: KeyRequest| all.usage(&request.key).map(usage_response);
                self.unary("usage", call, usage).await
            }
            "Cleanup" => self.unary("clean up", call, |all, _: CleanupRequest| all.clean_up()).await,
            "List" => self.list(call).await,
            _ => Status::unimplemented("there is no such method").into_http(),
        }
    }

    async fn unary<Q, A, F>(&self, name: &'static str, call: Request<Incoming>, work: F) -> Response<Body>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
        F: FnOnce(&Snapshotter, Q) -> Result<A, SnapshotterError> + Send + 'static,
    {
        let handler =
            Handler { snapshotter: self.snapshotter.clone(), name, work: Some(work), answers: PhantomData };
        Grpc::new(ProstCodec::default()).unary(handler, call).await
    }

    async fn list(&self, call: Request<Incoming>) -> Response<Body> {
        let handler = List { snapshotter: self.snapshotter.clone() };
        Grpc::new(ProstCodec::default()).server_streaming(handler, call).await
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

/// One call, whose work blocks.
struct Handler<A, F> {
    snapshotter: Arc<Snapshotter>,
    name: &'static str,
    work: Option<F>,
    answers: PhantomData<fn() -> A>,
}

impl<Q, A, F> UnaryService<Q> for Handler<A, F>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: FnOnce(&Snapshotter, Q) -> Result<A, SnapshotterError> + Send + 'static,
{
    type Response = A;
    type Future = Answer<A>;

    fn call(&mut self, request: tonic::Request<Q>) -> Answer<A> {
        let (snapshotter, name, work) = (self.snapshotter.clone(), self.name, self.work.take());
        Box::pin(async move {
            // It is called once, for it was made for this call.
            let work = work.ok_or_else(|| Status::internal("a call was made twice"))?;
            blocking(name, move || work(&snapshotter, request.into_inner())).await.map(tonic::Response::new)
        })
    }
}

struct List {
    snapshotter: Arc<Snapshotter>,
}

impl ServerStreamingService<ListRequest> for List {
    type Response = ListResponse;
    type ResponseStream = stream::Iter<std::vec::IntoIter<Result<ListResponse, Status>>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: tonic::Request<ListRequest>) -> Self::Future {
        let snapshotter = self.snapshotter.clone();
        Box::pin(async move {
            let filters = request.into_inner().filters;
            let all = blocking("list", move || snapshotter.list(&filters)).await?;
            let infos: Vec<Info> = all.into_iter().map(info).collect();
            let messages: Vec<_> =
                infos.chunks(LISTED_AT_ONCE).map(|infos| Ok(ListResponse { info: infos.to_vec() })).collect();
            Ok(tonic::Response::new(stream::iter(messages)))
        })
    }
}

async fn blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, SnapshotterError> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(status(name, &error)),
        Err(error) => Err(Status::internal(format!("{name}: {error}"))),
    }
}

/// An error as containerd understands it (package `errdefs`).
fn status(name: &str, error: &SnapshotterError) -> Status {
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
            tracing::error!(call = name, error = text, "a call failed")
        }
        _ => tracing::debug!(call = name, error = text, "a call was refused"),
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
