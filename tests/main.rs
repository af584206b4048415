//! The one test binary: `support/` holds what the tests share, each other module checks one promise.
#![allow(missing_docs)]

mod architecture;
mod bad_input;
mod budget;
mod changes;
mod check;
mod commands;
mod composing;
mod convert;
mod directories;
mod docker_images;
mod equality;
mod external_toc;
mod formats;
mod full_disk;
mod fuse;
mod labels;
mod laziness;
mod lower_store;
mod merge_rules;
mod names_and_garbage;
mod profile;
mod proof;
mod publishing;
mod pulling;
mod pushing;
mod records;
mod registry;
mod same_archives;
mod shared_layers;
mod snapshotter;
mod soci;
mod store_life;
mod support;
mod writable;
mod zstd_chunked;
