//! Digests as names of files: parsed once, so that no digest from outside ever becomes a path that leads elsewhere.
//!
//! OCI image specification, descriptor.md, "Digests": `algorithm ":" encoded`. Known are the two registered algorithms.

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256, Sha512};

use super::error::StoreError;

/// A digest whose parts are safe as names of files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct DigestName {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl DigestName {
    /// Reads `sha256:…` or `sha512:…`.
    ///
    /// # Errors
    /// [`StoreError::InvalidDigest`] for another algorithm, another length, or digits that are not lower-case hexadecimal.
    pub(super) fn parse(digest: &str) -> Result<DigestName, StoreError> {
        let invalid =
            |reason| StoreError::InvalidDigest { digest: digest.chars().take(200).collect(), reason };
        let (algorithm, hex) = digest.split_once(':').ok_or_else(|| invalid("it has no colon"))?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|known| known.name() == algorithm)
            .ok_or_else(|| invalid("only sha256 and sha512 are known"))?;
        if hex.len() != algorithm.hex_length() {
            return Err(invalid("its length does not fit the algorithm"));
        }
        if !is_lower_hex(hex) {
            return Err(invalid("it holds other characters than 0-9 and a-f"));
        }
        Ok(DigestName { algorithm, hex: hex.to_owned() })
    }

    /// The digest of `bytes` by the same algorithm.
    pub(super) fn of_same_algorithm(&self, bytes: &[u8]) -> DigestName {
        match self.algorithm {
            Algorithm::Sha256 => DigestName::of_sha256(&Sha256::digest(bytes)),
            Algorithm::Sha512 => DigestName::of_sha512(&Sha512::digest(bytes)),
        }
    }

    /// The digest of these bytes of SHA-256.
    pub(super) fn of_sha256(hash: &[u8]) -> DigestName {
        DigestName { algorithm: Algorithm::Sha256, hex: to_hex(hash) }
    }

    /// The digest of these bytes of SHA-512.
    pub(super) fn of_sha512(hash: &[u8]) -> DigestName {
        DigestName { algorithm: Algorithm::Sha512, hex: to_hex(hash) }
    }

    /// Whether it is one of SHA-512.
    pub(super) fn is_sha512(&self) -> bool {
        self.algorithm == Algorithm::Sha512
    }

    /// `directory/<algorithm>/<hex>`.
    pub(super) fn path_in(&self, directory: &Path) -> PathBuf {
        directory.join(self.algorithm.name()).join(&self.hex)
    }

    /// `<algorithm>-<hex>`, one name for a lock file.
    pub(super) fn flat(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.hex)
    }

    /// The directories that [`path_in`](Self::path_in) may need.
    pub(super) fn algorithm_directories() -> impl Iterator<Item = &'static str> {
        Algorithm::ALL.into_iter().map(Algorithm::name)
    }
}

impl fmt::Display for DigestName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// Whether `text` is not empty and all lower-case hexadecimal digits.
pub(super) fn is_lower_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_registered_digest_becomes_a_path() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest = DigestName::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!(digest.of_same_algorithm(b""), digest);
        assert_eq!(digest.path_in(Path::new("d")), Path::new("d/sha256").join(hex));
        assert_eq!(digest.to_string(), format!("sha256:{hex}"));

        for wrong in [
            String::new(),
            "sha256".to_owned(),
            "sha256:".to_owned(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("md5:{hex}"),
            format!("../x:{hex}"),
            format!("sha256:../{}", &hex[3..]),
            format!("sha512:{hex}"),
            format!(" sha256:{hex}"),
            format!("sha256:{}/", &hex[1..]),
        ] {
            assert!(DigestName::parse(&wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
