//! The messages of `runtime.v1.ImageService` (Kubernetes, `cri-api`) that are looked at, and of each only what matters: all else of them is
//! passed on unread.

use prost::Message;

/// `ImageSpec`.
#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    /// A reference, or an ID.
    #[prost(string, tag = "1")]
    pub image: String,
}

/// `AuthConfig`. Whoever shows one shows a password.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct AuthConfig {
    #[prost(string, tag = "1")]
    pub username: String,
    #[prost(string, tag = "2")]
    pub password: String,
    /// Both, with a colon between them, in base64.
    #[prost(string, tag = "3")]
    pub auth: String,
    /// The host that they are for; empty if it is the image's.
    #[prost(string, tag = "4")]
    pub server_address: String,
    #[prost(string, tag = "5")]
    pub identity_token: String,
    #[prost(string, tag = "6")]
    pub registry_token: String,
}

/// `PullImageRequest`.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub auth: Option<AuthConfig>,
}

/// `PullImageResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PullImageResponse {
    /// The image's ID.
    #[prost(string, tag = "1")]
    pub image_ref: String,
}

/// `RemoveImageRequest`, and `ImageStatusRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

/// `Image`.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, repeated, tag = "2")]
    pub repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub repo_digests: Vec<String>,
}

/// `ImageStatusResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}
