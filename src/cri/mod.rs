//! The image service of CRI (Kubernetes, `runtime.v1.ImageService`), which a kubelet is pointed at in containerd's place: so the
//! credentials of each pull are learnt, by which what is lazy is fetched later.
//!
//! ```text
//! kubelet, crictl ── peel serve's socket ── proxy ── containerd's socket: all calls, as they came
//!                                             │
//!                       PullImage, RemoveImage│                 ┌── Prepare: the image's documents, tables
//!                                             ▼                 │
//!                                          learned ◀── asks ────┤
//!                                             ▲                 │
//!                                           agent ◀── a socket ─┴── the process that serves a tree: its bytes
//! ```
//!
//! - What is learnt is in memory, for the image that was pulled so, until that is removed: never on disk, in no log and no error.
//! - A process that serves a tree remembers what it was told last, so containers go on reading while the daemon is away and after it came
//!   back, which then knows nothing. One that is started after that has no credentials until the image is pulled once more.
//! - [`messages`] are those of CRI as far as they are looked at.

pub mod agent;
pub mod learned;
mod messages;
pub mod proxy;
