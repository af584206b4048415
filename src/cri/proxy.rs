//! Calls of the image service, passed on to containerd as they came; of pulls, what is to be learnt, and of removals, what is to be
//! forgotten.
//!
//! Only the two messages that are looked at are held in memory, and no more of them than any message of gRPC may have. All others, those of
//! later versions too, go through as streams of bytes, with their headers and trailers: so nothing of them can be lost.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, TE};
use hyper::{Method, Request, Response, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tonic::body::Body;
use tonic::{Code, Status};

use super::learned::Learned;
use super::messages::{ImageRequest, ImageSpec, ImageStatusResponse, PullImageRequest, PullImageResponse};

/// What the paths of the image service's calls begin with.
pub const PREFIX: &str = "/runtime.v1.ImageService/";
/// Longest message that is held: the longest that containerd takes and sends (`defaults.DefaultMaxRecvMsgSize`).
const LONGEST_MESSAGE: usize = 16 << 20;
/// What comes before a message of gRPC: whether it is compressed, and its length.
const MESSAGE_HEAD: usize = 5;
/// How long containerd may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// The image service, in front of containerd's. Clones share a connection to it.
#[derive(Clone)]
pub struct ImageService {
    containerd: Arc<Containerd>,
    learned: Learned,
}

struct Containerd {
    address: PathBuf,
    connection: Mutex<Option<SendRequest<Body>>>,
}

impl ImageService {
    /// In front of the containerd at that socket, which need not be there yet. What pulls say is entered in `learned`.
    pub fn new(address: &Path, learned: Learned) -> ImageService {
        let containerd = Containerd { address: address.to_owned(), connection: Mutex::default() };
        ImageService { containerd: Arc::new(containerd), learned }
    }

    /// Answers a call, whose path begins with [`PREFIX`].
    pub async fn answer(&self, call: Request<Incoming>) -> Response<Body> {
        let answered = match call.uri().path().strip_prefix(PREFIX) {
            Some("PullImage") => self.pull(call).await,
            Some("RemoveImage") => self.remove(call).await,
            _ => self.containerd.send(call.map(Body::new)).await.map(|answer| answer.map(Body::new)),
        };
        answered.unwrap_or_else(|status| {
            tracing::warn!(code = ?status.code(), error = status.message(), "a call of the image service failed");
            status.into_http()
        })
    }

    async fn pull(&self, call: Request<Incoming>) -> Result<Response<Body>, Status> {
        let (call, request) = taken::<PullImageRequest>(call).await?;
        let image = request.image.unwrap_or_default().image;
        let has_credentials = request.auth.is_some();
        tracing::info!(image, has_credentials, "an image is pulled by CRI");
        // What is wrong with them, containerd says; but if it can use them all the same, the pull is not to fail for it.
        let running = self.learned.begin(&image, request.auth.as_ref()).map_err(|fault| {
            tracing::warn!(image, %fault, "the credentials of a pull are not learnt");
        });
        let (answer, response) = seen::<PullImageResponse>(self.containerd.send(call).await?).await?;
        if let (Some(response), Ok(running)) = (response, running) {
            running.succeeded(&response.image_ref);
        }
        Ok(answer)
    }

    async fn remove(&self, call: Request<Incoming>) -> Result<Response<Body>, Status> {
        let (call, request) = taken::<ImageRequest>(call).await?;
        let name = request.image.unwrap_or_default().image;
        // Once it is removed, nobody knows what else it was called.
        let names = self.names_of(name).await;
        let (answer, response) = seen::<()>(self.containerd.send(call).await?).await?;
        if response.is_some() {
            self.learned.forget(&names);
        }
        Ok(answer)
    }

    /// All that an image is known by; what it was called by in any case.
    async fn names_of(&self, name: String) -> Vec<String> {
        let request = ImageRequest { image: Some(ImageSpec { image: name.clone() }) };
        let call = async {
            let answer = self.containerd.send(new_call("ImageStatus", &request)?).await?;
            seen::<ImageStatusResponse>(answer).await
        };
        let found = call.await.ok().and_then(|(_, response)| response?.image);
        let mut names = vec![name];
        if let Some(image) = found {
            names.push(image.id);
            names.extend(image.repo_tags);
            names.extend(image.repo_digests);
        }
        names
    }
}

impl Containerd {
    /// Sends a call. One that could not be sent, because containerd has been restarted, is sent again.
    async fn send(&self, call: Request<Body>) -> Result<Response<Incoming>, Status> {
        let mut call = passed_on(call);
        for _ in 0..2 {
            let mut connection = self.connection().await?;
            let Err(mut failed) = (match connection.try_send_request(call).await {
                Ok(answer) => return Ok(answer),
                failed => failed,
            }) else {
                break;
            };
            self.connection.lock().await.take();
            match failed.take_message() {
                Some(unsent) => call = unsent,
                None => return Err(self.unavailable(&failed.into_error())),
            }
        }
        Err(self.unavailable(&"it hangs up at once"))
    }

    async fn connection(&self) -> Result<SendRequest<Body>, Status> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = connection.as_ref().filter(|open| !open.is_closed()) {
            return Ok(open.clone());
        }
        let opened = tokio::time::timeout(PATIENCE, async {
            let stream =
                UnixStream::connect(&self.address).await.map_err(|error| self.unavailable(&error))?;
            let opened = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            opened.map_err(|error| self.unavailable(&error))
        });
        let (sender, driver) = opened.await.map_err(|_| self.unavailable(&"it does not answer"))??;
        // It ends with the last clone of the sender; what breaks it is told to those who call.
        tokio::spawn(driver);
        *connection = Some(sender.clone());
        Ok(sender)
    }

    fn unavailable(&self, cause: &dyn std::fmt::Display) -> Status {
        Status::unavailable(format!("containerd at {} cannot be asked: {cause}", self.address.display()))
    }
}

/// The same call to containerd. Its address is nobody's business behind a socket; but there must be one.
fn passed_on(call: Request<Body>) -> Request<Body> {
    let (mut head, body) = call.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri =
        format!("http://containerd{path}").parse().unwrap_or_else(|_| Uri::from_static("http://containerd/"));
    head.headers.remove(HOST);
    head.version = Version::HTTP_2;
    Request::from_parts(head, body)
}

fn new_call(method: &str, message: &impl Message) -> Result<Request<Body>, Status> {
    let body = Body::new(Whole::of([Frame::data(framed(message)?)]));
    let mut call = Request::new(body);
    *call.method_mut() = Method::POST;
    *call.uri_mut() = format!("{PREFIX}{method}").parse().map_err(|_| Status::internal("no path"))?;
    call.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    call.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    Ok(call)
}

fn framed(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(MESSAGE_HEAD + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).map_err(|_| Status::resource_exhausted("the message is too long"))?);
    message.encode(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
    Ok(bytes.freeze())
}

/// A call whose message is looked at, as it is to be passed on.
async fn taken<Q: Message + Default>(call: Request<Incoming>) -> Result<(Request<Body>, Q), Status> {
    let (head, body) = call.into_parts();
    let (bytes, trailers) = collected(body).await?;
    let request = message(&bytes)?;
    Ok((Request::from_parts(head, Body::new(Whole::new(bytes, trailers))), request))
}

/// An answer as it is to be passed on, and its message if it is no error. One that cannot be understood is passed on all the same.
async fn seen<A: Message + Default>(
    answer: Response<Incoming>,
) -> Result<(Response<Body>, Option<A>), Status> {
    let (head, body) = answer.into_parts();
    let (bytes, trailers) = collected(body).await?;
    let status = trailers.as_ref().and_then(Status::from_header_map);
    let status = status.or_else(|| Status::from_header_map(&head.headers));
    let succeeded = status.is_some_and(|status| status.code() == Code::Ok);
    let response = if succeeded { message(&bytes).ok() } else { None };
    Ok((Response::from_parts(head, Body::new(Whole::new(bytes, trailers))), response))
}

/// The one message of a body.
fn message<T: Message + Default>(body: &[u8]) -> Result<T, Status> {
    let cut = || Status::invalid_argument("the message is cut off");
    let (head, message) = body.split_at_checked(MESSAGE_HEAD).ok_or_else(cut)?;
    let [compressed, length @ ..] = head else { return Err(cut()) };
    if *compressed != 0 {
        return Err(Status::unimplemented("compressed messages are not understood here"));
    }
    let length = length.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    if length != message.len() {
        return Err(cut());
    }
    // What the parser has to say could quote a secret.
    T::decode(message).map_err(|_| Status::invalid_argument("the message is malformed"))
}

async fn collected(mut body: Incoming) -> Result<(Bytes, Option<HeaderMap>), Status> {
    let mut bytes = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| Status::unavailable(format!("the message broke off: {error}")))?;
        match frame.into_data() {
            Ok(data) if bytes.len() + data.len() > MESSAGE_HEAD + LONGEST_MESSAGE => {
                return Err(Status::resource_exhausted(format!(
                    "the message has more than {LONGEST_MESSAGE} bytes"
                )));
            }
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((bytes.freeze(), trailers))
}

/// A body that is here.
struct Whole(VecDeque<Frame<Bytes>>);

impl Whole {
    fn new(bytes: Bytes, trailers: Option<HeaderMap>) -> Whole {
        let data = (!bytes.is_empty()).then(|| Frame::data(bytes));
        Whole::of(data.into_iter().chain(trailers.map(Frame::trailers)))
    }

    fn of(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Whole {
        Whole(frames.into_iter().collect())
    }
}

impl hyper::body::Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_its_head_says_or_refused() {
        let image = Some(ImageSpec { image: "name".to_owned() });
        let body = framed(&ImageRequest { image: image.clone() }).unwrap();
        assert_eq!(message::<ImageRequest>(&body).unwrap().image, image);
        let with = |place: usize, byte: u8| {
            let mut body = body.to_vec();
            body[place] = byte;
            body
        };
        for (body, code) in [
            (Vec::new(), Code::InvalidArgument),
            (body[..body.len() - 1].to_vec(), Code::InvalidArgument),
            (with(0, 1), Code::Unimplemented),
            (with(1, 255), Code::InvalidArgument),
            (with(6, 200), Code::InvalidArgument),
        ] {
            assert_eq!(message::<ImageRequest>(&body).unwrap_err().code(), code, "{body:?}");
        }
    }
}
