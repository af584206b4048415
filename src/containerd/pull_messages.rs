//! The messages of the services of containerd that a pull asks beside that of snapshots: `containerd.services.content.v1`,
//! `…images.v1`, `…leases.v1` and `…diff.v1`. Of each, only the fields that are looked at or set.

use std::collections::BTreeMap;

use prost::Message;

use super::messages::{FieldMask, Mount};

/// `containerd.types.Descriptor`.
#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    #[prost(string, tag = "1")]
    pub media_type: String,
    #[prost(string, tag = "2")]
    pub digest: String,
    #[prost(int64, tag = "3")]
    pub size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
}

/// `containerd.services.content.v1.Info`.
#[derive(Clone, PartialEq, Message)]
pub struct ContentInfo {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.services.content.v1.InfoRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ContentInfoRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// `containerd.services.content.v1.InfoResponse` and `UpdateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ContentInfoResponse {
    #[prost(message, optional, tag = "1")]
    pub info: Option<ContentInfo>,
}

/// `containerd.services.content.v1.UpdateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ContentUpdateRequest {
    #[prost(message, optional, tag = "1")]
    pub info: Option<ContentInfo>,
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<FieldMask>,
}

/// `containerd.services.content.v1.ReadContentRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ReadRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// `containerd.services.content.v1.ReadContentResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ReadResponse {
    #[prost(bytes = "bytes", tag = "2")]
    pub data: bytes::Bytes,
}

/// What a [`WriteRequest`] asks for, `containerd.services.content.v1.WriteAction`.
pub mod write_action {
    /// How far the blob has come.
    pub const STAT: i32 = 0;
    /// Bytes to add.
    pub const WRITE: i32 = 1;
    /// It is whole.
    pub const COMMIT: i32 = 2;
}

/// `containerd.services.content.v1.WriteContentRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct WriteRequest {
    #[prost(int32, tag = "1")]
    pub action: i32,
    /// What the blob is known by until it is whole. The first message must have it.
    #[prost(string, tag = "2")]
    pub reference: String,
    /// Bytes of the whole blob.
    #[prost(int64, tag = "3")]
    pub total: i64,
    /// Digest of the whole blob.
    #[prost(string, tag = "4")]
    pub expected: String,
    #[prost(int64, tag = "5")]
    pub offset: i64,
    #[prost(bytes = "bytes", tag = "6")]
    pub data: bytes::Bytes,
    #[prost(btree_map = "string, string", tag = "7")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.services.content.v1.WriteContentResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct WriteResponse {
    /// Bytes that are there.
    #[prost(int64, tag = "4")]
    pub offset: i64,
}

/// `containerd.services.content.v1.AbortRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct AbortRequest {
    #[prost(string, tag = "1")]
    pub reference: String,
}

/// `containerd.services.images.v1.Image`.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "3")]
    pub target: Option<Descriptor>,
}

/// `containerd.services.images.v1.CreateImageRequest`, `UpdateImageRequest` and the answers to both.
#[derive(Clone, PartialEq, Message)]
pub struct ImageMessage {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
    /// Of an update alone.
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<FieldMask>,
}

/// `containerd.services.leases.v1.CreateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct CreateLeaseRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
}

/// `containerd.services.leases.v1.CreateResponse`, of which nothing is looked at.
#[derive(Clone, PartialEq, Message)]
pub struct CreateLeaseResponse {}

/// `containerd.services.leases.v1.DeleteRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct DeleteLeaseRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Whether the answer comes after garbage was collected.
    #[prost(bool, tag = "2")]
    pub sync: bool,
}

/// `containerd.services.leases.v1.Resource`.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(string, tag = "1")]
    pub id: String,
    /// `content`, or `snapshots/` and the snapshotter.
    #[prost(string, tag = "2")]
    pub kind: String,
}

/// `containerd.services.leases.v1.AddResourceRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct AddResourceRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Resource>,
}

/// `containerd.services.diff.v1.ApplyRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ApplyRequest {
    #[prost(message, optional, tag = "1")]
    pub diff: Option<Descriptor>,
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
}

/// `containerd.services.diff.v1.ApplyResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ApplyResponse {
    /// What it was, uncompressed.
    #[prost(message, optional, tag = "1")]
    pub applied: Option<Descriptor>,
}
