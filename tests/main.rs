//! The one test binary: `support/` holds what the tests share, each other module checks one promise.
#![allow(missing_docs)]

mod architecture;
mod convert;
mod equality;
mod fuse;
mod merge_rules;
mod registry;
mod support;
