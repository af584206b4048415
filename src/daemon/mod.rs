//! `peel serve`: what a process that runs for days offers to others.
//!
//! ```text
//! containerd ── unix socket ── connection ── gRPC ── service ── blocking thread ── snapshotter
//!   kubelet       0600, root      HTTP/2      messages   │ │
//!                 or own user                            │ └ CRI's image service: passed on to containerd
//!                                                        └ one error, one code
//!
//! Prometheus ── loopback, or unix socket ── HTTP/1.1 ── metrics
//! ```
//!
//! Now and then it looks after the trees that are mounted.

mod exposition;
pub mod metrics;
pub mod metrics_server;
mod processes;
mod service;
pub mod socket;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::cri::proxy::ImageService;
use crate::error::chain;
use crate::snapshotter::Snapshotter;
use metrics::Metrics;
use metrics_server::MetricsListener;
use service::Service;

/// How long requests that are under way may take once the daemon is to end.
const GRACE: Duration = Duration::from_secs(5);
/// Connections at a time: containerd keeps one open, and tools come and go.
const MOST_CONNECTIONS: usize = 256;

/// What is served, and how it is looked after.
pub struct Serving {
    /// Answers containerd.
    pub snapshotter: Arc<Snapshotter>,
    /// Answers kubelet.
    pub images: ImageService,
    /// Counts what is done.
    pub metrics: Arc<Metrics>,
    /// Where the numbers are told, if anywhere.
    pub metrics_listener: Option<MetricsListener>,
    /// How often the trees that are mounted are looked after.
    pub look_every: Duration,
}

/// Answers containerd's requests on that socket, and those for the image service, until `end` comes, and then those that are under way.
pub async fn serve(listener: UnixListener, serving: Serving, end: impl Future<Output = ()>) {
    let Serving { snapshotter, images, metrics, metrics_listener, look_every } = serving;
    let mut beside = JoinSet::new();
    beside.spawn(look_after_trees(snapshotter.clone(), metrics.clone(), look_every));
    if let Some(listener) = metrics_listener {
        tracing::info!(address = listener.address(), "telling numbers");
        beside.spawn(listener.serve(metrics.clone(), snapshotter.clone()));
    }
    let service = Service::new(snapshotter, images, metrics);
    let (ending, watching) = tokio::sync::watch::channel(false);
    let mut connections = JoinSet::new();
    let mut end = std::pin::pin!(end);
    loop {
        let accepted = tokio::select! {
            () = &mut end => break,
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) if is_allowed(&stream) => {
                connections.spawn(converse(stream, service.clone(), watching.clone()));
            }
            Ok(_) => tracing::warn!("a user who may not is turned away"),
            Err(error) => {
                tracing::warn!(%error, "a connection failed");
                // Out of descriptors, as a rule: others will be closed.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // It is left only if nobody listens.
    let _ = ending.send(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        tracing::warn!("requests that are under way are cut off");
    }
}

/// Unmounts trees that nobody uses, and tells how many there are.
async fn look_after_trees(snapshotter: Arc<Snapshotter>, metrics: Arc<Metrics>, every: Duration) {
    loop {
        let snapshotter = snapshotter.clone();
        match tokio::task::spawn_blocking(move || snapshotter.unmount_idle()).await {
            Ok(Ok(trees)) => metrics.trees_are(trees),
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "trees that nobody uses stay mounted");
            }
            Err(error) => tracing::error!(%error, "trees that nobody uses stay mounted"),
        }
        tokio::time::sleep(every).await;
    }
}

/// Only root and this user may: whoever may, decides what containers see.
fn is_allowed(stream: &UnixStream) -> bool {
    let user = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == user)
}

async fn converse(stream: UnixStream, service: Service, mut ending: tokio::sync::watch::Receiver<bool>) {
    let answer = hyper::service::service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        // Once is all that is ever said.
        _ = ending.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
