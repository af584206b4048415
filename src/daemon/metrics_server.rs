//! Where the numbers are asked for: `GET /metrics` by HTTP/1.1, on a loopback address or a unix socket.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::exposition::MEDIA_TYPE;
use super::metrics::Metrics;
use super::socket::{Socket, SocketError};
use crate::error::chain;
use crate::snapshotter::Snapshotter;

/// Connections at a time.
const MOST_CONNECTIONS: usize = 16;
/// How long a question may take to come, and a connection to be idle.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where numbers are to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A loopback address: anybody on this machine may ask.
    Tcp(SocketAddr),
    /// A unix socket: root and this user may.
    Unix(PathBuf),
}

/// An address that is none, or that the network could reach.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither a loopback address with a port, such as 127.0.0.1:9180, nor the path of a socket")]
pub struct AddressError(String);

impl FromStr for MetricsAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<MetricsAddress, AddressError> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(MetricsAddress::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(MetricsAddress::Tcp(address)),
            _ => Err(AddressError(text.to_owned())),
        }
    }
}

/// Listens there already.
#[derive(Debug)]
pub enum MetricsListener {
    /// On a loopback address.
    Tcp(TcpListener),
    /// At a socket, whose name goes with it.
    Unix(UnixListener, Socket),
}

impl MetricsListener {
    /// Listens. To be called on a thread of a runtime.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn listen(address: &MetricsAddress) -> Result<MetricsListener, SocketError> {
        match address {
            MetricsAddress::Unix(path) => {
                let (socket, listener) = Socket::listen(path)?;
                let failed =
                    |error| SocketError::Failed { operation: "listen at", path: path.clone(), error };
                Ok(MetricsListener::Unix(UnixListener::from_std(listener).map_err(failed)?, socket))
            }
            MetricsAddress::Tcp(address) => {
                let listen = || {
                    let listener = std::net::TcpListener::bind(address)?;
                    listener.set_nonblocking(true)?;
                    TcpListener::from_std(listener)
                };
                let failed = |error| {
                    let path = PathBuf::from(address.to_string());
                    SocketError::Failed { operation: "listen at", path, error }
                };
                Ok(MetricsListener::Tcp(listen().map_err(failed)?))
            }
        }
    }

    /// Where, as a log tells it.
    pub fn address(&self) -> String {
        match self {
            MetricsListener::Tcp(listener) => {
                listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
            }
            MetricsListener::Unix(_, socket) => socket.path().display().to_string(),
        }
    }

    /// Answers until it is dropped.
    pub async fn serve(self, metrics: Arc<Metrics>, snapshotter: Arc<Snapshotter>) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                Ok::<_, std::io::Error>(match &self {
                    MetricsListener::Tcp(listener) => Connection::Tcp(listener.accept().await?.0),
                    MetricsListener::Unix(listener, _) => Connection::Unix(listener.accept().await?.0),
                })
            };
            let accepted = tokio::select! {
                accepted = accepted, if connections.len() < MOST_CONNECTIONS => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let (metrics, snapshotter) = (metrics.clone(), snapshotter.clone());
            match accepted {
                Ok(Connection::Tcp(stream)) => {
                    connections.spawn(converse(stream, metrics, snapshotter));
                }
                Ok(Connection::Unix(stream)) if super::is_allowed(&stream) => {
                    connections.spawn(converse(stream, metrics, snapshotter));
                }
                Ok(Connection::Unix(_)) => tracing::warn!("a user who may not is turned away"),
                Err(error) => {
                    tracing::warn!(%error, "a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

enum Connection {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    metrics: Arc<Metrics>,
    snapshotter: Arc<Snapshotter>,
) {
    let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (metrics, snapshotter) = (metrics.clone(), snapshotter.clone());
        async move { Ok::<_, Infallible>(answer(&request, metrics, snapshotter).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn answer(
    request: &Request<Incoming>,
    metrics: Arc<Metrics>,
    snapshotter: Arc<Snapshotter>,
) -> Response<String> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "the numbers are at /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "they can only be read\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let gathered = tokio::task::spawn_blocking(move || metrics.text(&snapshotter)).await;
    let told = match gathered {
        Ok(Ok(text)) => {
            let mut told = Response::new(text);
            told.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
            return told;
        }
        Ok(Err(error)) => chain(&error).to_string(),
        Err(error) => error.to_string(),
    };
    tracing::error!(error = told, "the numbers cannot be told");
    plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{told}\n"))
}

fn plain(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(text.to_owned());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_ask() {
        let unix = |path: &str| MetricsAddress::Unix(path.into());
        for (text, expected) in [
            ("/run/peel/metrics.sock", Some(unix("/run/peel/metrics.sock"))),
            ("unix:/run/m", Some(unix("/run/m"))),
            ("127.0.0.1:9180", Some(MetricsAddress::Tcp(([127, 0, 0, 1], 9180).into()))),
            ("[::1]:0", Some(MetricsAddress::Tcp("[::1]:0".parse().unwrap()))),
            ("0.0.0.0:9180", None),
            ("192.168.0.1:9180", None),
            ("[::]:9180", None),
            ("localhost", None),
            (":9180", None),
            ("unix:m", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<MetricsAddress>().ok(), expected, "{text}");
        }
    }
}
