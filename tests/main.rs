//! The one test binary: `support/` holds what the tests share, each other module checks one promise.
#![allow(missing_docs)]

mod registry;
mod support;

mod fuse;
