//! One connection to containerd, and how its services are called: gRPC on a unix socket, with the namespace, and the lease if there is
//! one, in the headers of each call.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use super::ContainerdError;

/// Nobody looks at the host of a call that comes by a socket; but there must be one.
const HOST: &str = "http://containerd";
/// Longest message that is taken: as for those that are sent (containerd, `defaults.DefaultMaxRecvMsgSize`).
const LONGEST_MESSAGE: usize = 16 << 20;

/// containerd, as one namespace of it. Clones share the connection.
#[derive(Clone)]
pub struct Connection {
    channel: Channel,
    address: PathBuf,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

/// What `tonic` sends calls through.
#[derive(Clone)]
struct Channel(SendRequest<Body>);

impl GrpcService<Body> for Channel {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Connection {
    /// Connects to the socket at that path, for a namespace.
    ///
    /// # Errors
    /// [`ContainerdError::Connect`], [`ContainerdError::Namespace`].
    pub async fn open(address: &Path, namespace: &str) -> Result<Connection, ContainerdError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| ContainerdError::Connect {
            address: address.to_owned(),
            cause: error,
        };
        let named = Some(namespace).filter(|name| !name.is_empty()).and_then(|name| name.parse().ok());
        let namespace = named.ok_or_else(|| ContainerdError::Namespace { name: namespace.to_owned() })?;
        let stream = UnixStream::connect(address).await.map_err(|error| failed(error.into()))?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| failed(error.into()))?;
        // It ends with the last clone of the sender; what breaks it is told to those who call.
        tokio::spawn(connection);
        Ok(Connection { channel: Channel(sender), address: address.to_owned(), namespace, lease: None })
    }

    /// The same; all that is made through it is kept by that lease. Nothing if that is no name.
    pub fn with_lease(&self, id: &str) -> Option<Connection> {
        Some(Connection { lease: Some(id.parse().ok()?), ..self.clone() })
    }

    /// Makes a call, such as `containerd.services.images.v1.Images/Create`.
    ///
    /// # Errors
    /// What containerd says, or that it says nothing any more.
    pub async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Failed>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let answered = self.client().await?.unary(self.request(request), path(method), codec::<Q, A>()).await;
        Ok(answered.map_err(|status| Failed { method, status })?.into_inner())
    }

    /// Makes a call to which there is a stream of answers.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn read<Q, A>(&self, method: &'static str, request: Q) -> Result<Answers<A>, Failed>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client().await?;
        let answered = client.server_streaming(self.request(request), path(method), codec::<Q, A>()).await;
        let answers = answered.map_err(|status| Failed { method, status })?.into_inner();
        Ok(Answers { method, answers })
    }

    /// Makes a call of which both sides are streams. The first request must be there.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn converse<Q, A>(
        &self,
        method: &'static str,
        requests: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Answers<A>, Failed>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client().await?;
        let answered = client.streaming(self.request(requests), path(method), codec::<Q, A>()).await;
        let answers = answered.map_err(|status| Failed { method, status })?.into_inner();
        Ok(Answers { method, answers })
    }

    /// An error of a call, told with the socket.
    pub(super) fn failed(&self, failed: Failed) -> ContainerdError {
        ContainerdError::Call { address: self.address.clone(), method: failed.method, status: failed.status }
    }

    async fn client(&self) -> Result<Grpc<Channel>, Failed> {
        let mut client = Grpc::with_origin(self.channel.clone(), Uri::from_static(HOST))
            .max_decoding_message_size(LONGEST_MESSAGE);
        let ready = client.ready().await;
        ready.map_err(|error| Failed {
            method: "a call",
            status: Status::unavailable(format!("the connection is gone: {error}")),
        })?;
        Ok(client)
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        request
    }
}

/// A call that failed.
#[derive(Debug)]
pub struct Failed {
    /// Which call.
    pub method: &'static str,
    /// What containerd says.
    pub status: Status,
}

impl Failed {
    /// Whether what is asked for, or what it needs, is not there.
    pub fn is_not_found(&self) -> bool {
        self.status.code() == Code::NotFound
    }

    /// Whether what was to be made is there.
    pub fn is_already_exists(&self) -> bool {
        self.status.code() == Code::AlreadyExists
    }
}

/// What comes back from a call, one after the other.
pub struct Answers<A> {
    method: &'static str,
    answers: Streaming<A>,
}

impl<A> Answers<A> {
    /// The next; nothing after the last.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn next(&mut self) -> Result<Option<A>, Failed> {
        self.answers.message().await.map_err(|status| Failed { method: self.method, status })
    }
}

fn codec<Q: Message + 'static, A: Message + Default + 'static>() -> ProstCodec<Q, A> {
    ProstCodec::default()
}

fn path(method: &'static str) -> PathAndQuery {
    // Every name of a method, which are all written here, is a path.
    PathAndQuery::try_from(format!("/{method}")).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}
