//! Who is told what crosses the network, beside the one who asked for it: for counting.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{StatusCode, Url};

/// What was asked for, as the path of the URL tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A manifest or index.
    Manifest,
    /// A blob of a repository.
    Blob,
    /// What refers to a manifest.
    Referrers,
    /// A part of an upload.
    Upload,
    /// Anything else: a token; the place that a registry redirects to.
    Other,
}

impl RequestKind {
    /// All, each at the place of its number.
    pub const ALL: [RequestKind; 5] = [
        RequestKind::Manifest,
        RequestKind::Blob,
        RequestKind::Referrers,
        RequestKind::Upload,
        RequestKind::Other,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            RequestKind::Manifest => "manifest",
            RequestKind::Blob => "blob",
            RequestKind::Referrers => "referrers",
            RequestKind::Upload => "upload",
            RequestKind::Other => "other",
        }
    }

    /// OCI distribution specification 1.1, "Endpoints".
    fn of(url: &Url) -> RequestKind {
        let Some(path) = url.path().strip_prefix("/v2/") else { return RequestKind::Other };
        // The name of a repository may have any of these words in it, but none comes behind it.
        let mut words = path.rsplit('/').skip(1);
        match (words.next(), words.next()) {
            (Some("uploads"), Some("blobs")) => RequestKind::Upload,
            (Some("blobs"), _) if path.ends_with("/uploads") => RequestKind::Upload,
            (Some("blobs"), _) => RequestKind::Blob,
            (Some("manifests"), _) => RequestKind::Manifest,
            (Some("referrers"), _) => RequestKind::Referrers,
            _ => RequestKind::Other,
        }
    }
}

/// How the host answered: statuses that say something by themselves, and the classes of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// 2xx.
    Success,
    /// 3xx.
    Redirect,
    /// 401, which also begins every conversation with a registry that wants a token.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 429.
    TooMany,
    /// Any other 4xx, and what is no status of HTTP.
    ClientError,
    /// 5xx.
    ServerError,
    /// No answer came: no connection, no TLS, or nothing in time.
    NoAnswer,
}

impl RequestOutcome {
    /// All, each at the place of its number.
    pub const ALL: [RequestOutcome; 9] = [
        RequestOutcome::Success,
        RequestOutcome::Redirect,
        RequestOutcome::Unauthorized,
        RequestOutcome::Forbidden,
        RequestOutcome::NotFound,
        RequestOutcome::TooMany,
        RequestOutcome::ClientError,
        RequestOutcome::ServerError,
        RequestOutcome::NoAnswer,
    ];

    /// The status, or the class of statuses; `none` if there was none.
    pub fn name(self) -> &'static str {
        match self {
            RequestOutcome::Success => "2xx",
            RequestOutcome::Redirect => "3xx",
            RequestOutcome::Unauthorized => "401",
            RequestOutcome::Forbidden => "403",
            RequestOutcome::NotFound => "404",
            RequestOutcome::TooMany => "429",
            RequestOutcome::ClientError => "4xx",
            RequestOutcome::ServerError => "5xx",
            RequestOutcome::NoAnswer => "none",
        }
    }

    fn of(status: StatusCode) -> RequestOutcome {
        match status.as_u16() {
            200..=299 => RequestOutcome::Success,
            300..=399 => RequestOutcome::Redirect,
            401 => RequestOutcome::Unauthorized,
            403 => RequestOutcome::Forbidden,
            404 => RequestOutcome::NotFound,
            429 => RequestOutcome::TooMany,
            500..=599 => RequestOutcome::ServerError,
            _ => RequestOutcome::ClientError,
        }
    }
}

/// A request whose answer has begun, or that failed before.
#[derive(Clone, Copy, Debug)]
pub struct RequestDone<'a> {
    /// The host that was asked, with its port if that is not the usual one.
    pub host: &'a str,
    /// What was asked for.
    pub kind: RequestKind,
    /// What came of it.
    pub outcome: RequestOutcome,
    /// From the request to the head of the answer, or to the failure; a connection that had to be made included.
    pub until_answer: Duration,
}

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum NetworkEvent<'a> {
    /// A request was answered, or failed.
    Request(RequestDone<'a>),
    /// So many bytes of a body came.
    Received(usize),
    /// An attempt is made again after a failure.
    Retry,
}

type Told = dyn Fn(&NetworkEvent<'_>) + Send + Sync;

/// Who is told. By default nobody.
#[derive(Clone, Default)]
pub struct NetworkObserver(Option<Arc<Told>>);

impl NetworkObserver {
    /// `observer` is called on the threads that wait for answers: it must not wait itself.
    pub fn new(observer: impl Fn(&NetworkEvent<'_>) + Send + Sync + 'static) -> NetworkObserver {
        NetworkObserver(Some(Arc::new(observer)))
    }

    pub(crate) fn tell(&self, event: &NetworkEvent<'_>) {
        self.0.iter().for_each(|told| told(event));
    }

    pub(crate) fn tell_answer(&self, url: &Url, status: Option<StatusCode>, until_answer: Duration) {
        if self.0.is_none() {
            return;
        }
        let host = match (url.host_str().unwrap_or_default(), url.port()) {
            (host, None) => host.to_owned(),
            (host, Some(port)) => format!("{host}:{port}"),
        };
        let outcome = status.map_or(RequestOutcome::NoAnswer, RequestOutcome::of);
        let done = RequestDone { host: &host, kind: RequestKind::of(url), outcome, until_answer };
        self.tell(&NetworkEvent::Request(done));
    }
}

impl fmt::Debug for NetworkObserver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("NetworkObserver").field(&self.0.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn numbers_are_places_among_all() {
        assert!(RequestKind::ALL.iter().enumerate().all(|(place, kind)| *kind as usize == place));
        assert!(RequestOutcome::ALL.iter().enumerate().all(|(place, outcome)| *outcome as usize == place));
    }

    #[test]
    fn a_request_is_known_by_its_path_and_its_status() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = seen.clone();
        let observer = NetworkObserver::new(move |event| {
            let NetworkEvent::Request(done) = event else { return };
            told.lock().unwrap().push((done.host.to_owned(), done.kind.name(), done.outcome.name()));
        });
        for (url, status, expected) in [
            ("https://r.example/v2/a/b/manifests/latest", Some(200), ("r.example", "manifest", "2xx")),
            ("http://r:5000/v2/a/blobs/sha256:0", Some(206), ("r:5000", "blob", "2xx")),
            ("https://r:443/v2/a/blobs/uploads/7", Some(202), ("r", "upload", "2xx")),
            ("https://r/v2/blobs/referrers/sha256:0", Some(404), ("r", "referrers", "404")),
            ("https://cdn/v1/blobs/x?signature=secret", Some(503), ("cdn", "other", "5xx")),
            ("https://r/v2/", Some(401), ("r", "other", "401")),
            ("https://r/v2/a/blobs/x", Some(307), ("r", "blob", "3xx")),
            ("https://r/v2/a/blobs/x", Some(416), ("r", "blob", "4xx")),
            ("https://r/v2/a/blobs/x", Some(403), ("r", "blob", "403")),
            ("https://r/v2/a/blobs/x", Some(429), ("r", "blob", "429")),
            ("https://r/v2/a/blobs/x", None, ("r", "blob", "none")),
        ] {
            let status = status.map(|status| StatusCode::from_u16(status).unwrap());
            observer.tell_answer(&Url::parse(url).unwrap(), status, Duration::ZERO);
            let (host, kind, outcome) = seen.lock().unwrap().pop().unwrap();
            assert_eq!((host.as_str(), kind, outcome), expected, "{url}");
        }
    }
}
