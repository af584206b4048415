//! All that crosses the network: image references, manifests, credentials, ranged reads of blobs from OCI registries and
//! from image layouts on disk, and writing to both. It knows no file system, and nothing else of ours.
//!
//! ```text
//! ImageReference ─▶ Client ─▶ Repository ─▶ resolve ─▶ Resolved: manifest, config, layers
//!                                      ├──▶ Blob ─▶ read(range), stream(from)
//!                                      ├──▶ referrers: what says something about a manifest
//!                                      └──▶ new_blob ─▶ BlobDraft ─▶ keep; copy_blob; put_document, put_referrer
//!
//! client ─▶ resolve, layout
//!    ├───▶ endpoint ─▶ hosts: who is asked
//!    └───▶ remote ─▶ retry ─▶ mirrors ─▶ transport ─▶ auth ─▶ credentials
//!                                            └───▶ connections
//! ```
//!
//! Rules that hold here:
//! - the environment is read only through a closure the caller gives; files and helpers only when a host asks for credentials;
//! - every document is hashed and must match the digest it was asked for by;
//! - whatever a host sends, memory is bounded by what was asked for;
//! - credentials go to the host they belong to, and to no log, no error and no `Debug`;
//! - a transfer is never decompressed: blobs are named by the digest of the bytes as stored.
//!
//! Specifications: OCI distribution 1.1 (pull and push), OCI image 1.1, Docker's image manifest schema 2 and token authentication.

mod auth;
mod challenge;
mod client;
mod configuration;
mod connections;
mod content_range;
mod copy;
mod credentials;
pub mod digest;
mod draft;
mod endpoint;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod hosts;
mod layout;
mod local_file;
pub mod manifest;
mod mirrors;
mod multipart;
mod observer;
pub mod odd_keys;
mod origin;
pub mod platform;
mod push;
pub mod reference;
mod referrers;
mod remote;
pub mod resolve;
mod retry;
mod statistics;
mod transport;
mod upload;

pub use client::{Blob, Client, FetchedDocument, Repository};
pub use configuration::{ClientCertificate, ClientConfiguration, HostSettings, Proxies, Timeouts};
pub use copy::Copied;
pub use credentials::{Asked, Credential, CredentialError, CredentialSource};
pub use digest::{Digest, Digester};
pub use draft::BlobDraft;
pub use error::{Error, ErrorKind};
pub use manifest::{BlobDescriptor, Document, MAXIMUM_DOCUMENT_SIZE};
pub use observer::{NetworkEvent, NetworkObserver, RequestDone, RequestKind, RequestOutcome};
pub use platform::Platform;
pub use reference::{ImageReference, LayoutReference, Reference, Target};
pub use referrers::NewReferrer;
pub use resolve::{Resolved, resolve};
pub use statistics::Statistics;
