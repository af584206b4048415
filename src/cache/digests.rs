//! Digests that name stacks of layers.

use peelfs_registry::Digest;

/// The chain ID of a layer on a stack (OCI image specification, config.md, "Layer ChainID"): that of the lowest layer is its diff ID.
pub fn chain_id(parent: Option<&str>, diff_id: &str) -> String {
    match parent {
        None => diff_id.to_owned(),
        Some(parent) => link(parent, diff_id),
    }
}

/// The digest of two digests.
pub fn link(first: &str, second: &str) -> String {
    Digest::sha256_of(format!("{first} {second}").as_bytes()).to_string()
}

/// What a layer adds to a blob chain ID: its blob, and what that is uncompressed.
pub(super) fn blob_link(blob: &str, diff_id: &str) -> String {
    link(blob, diff_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        // Calculated with sha256sum: printf '%s %s' sha256:1…1 sha256:2…2 | sha256sum.
        let digit = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let first = chain_id(None, &digit("1"));
        assert_eq!(first, digit("1"));
        let second = chain_id(Some(&first), &digit("2"));
        assert_eq!(second, "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5");
        let third = chain_id(Some(&second), &digit("3"));
        assert_eq!(third, "sha256:50127c0d6b338be78246434b4bce23ecf75e505158ea0bbd15effeb162fbf3ec");
    }
}
