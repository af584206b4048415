//! Promises of the zstd:chunked reader.
