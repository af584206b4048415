//! Content digests: `algorithm:hex`, the names by which everything in an image is found and proved.
//!
//! A [`Digest`] is validated once, where it enters; from then on its text is safe as a path component and its
//! comparison is plain equality. Rules of the OCI image specification, "Digests": lower-case hex of exactly the
//! algorithm's length; `sha256` and `sha512` are the registered algorithms, and all that we accept.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A registered digest algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, which practically every image uses.
    Sha256,
    /// SHA-512, allowed by the specification.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Number of hex digits in a digest of this algorithm.
    pub const fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A validated digest. Its order is that of its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    text: String,
}

impl Digest {
    /// The SHA-256 of `content`.
    pub fn sha256_of(content: &[u8]) -> Digest {
        Digest::of(Algorithm::Sha256, content)
    }

    /// The digest of `content` by `algorithm`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Digest {
        let mut digester = Digester::new(algorithm);
        digester.update(content);
        digester.finish()
    }

    /// The algorithm before the colon.
    pub fn algorithm(&self) -> Algorithm {
        // Only two algorithms pass validation.
        if self.text.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The lower-case hex after the colon; safe as a file name.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm().name().len() + 1..]
    }

    /// The whole text, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The hash itself: 32 bytes for SHA-256, 64 for SHA-512.
    pub fn to_bytes(&self) -> Vec<u8> {
        let digit = |digit: u8| (digit as char).to_digit(16).unwrap_or_default() as u8;
        self.hex().as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    /// Whether `content` has this digest.
    pub fn matches(&self, content: &[u8]) -> bool {
        Digest::of(self.algorithm(), content) == *self
    }

    /// A digester of this digest's algorithm, for content that comes in pieces.
    pub fn digester(&self) -> Digester {
        Digester::new(self.algorithm())
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Digest {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(algorithm.name().len() + 1 + algorithm.hex_length());
        text.push_str(algorithm.name());
        text.push(':');
        for byte in hash {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        Digest { text }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Digest::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let Some((name, hex)) = text.split_once(':') else {
            return Err(DigestError::NoAlgorithm { text: shortened(&text) });
        };
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm { algorithm: shortened(name) }),
        };
        if hex.len() != algorithm.hex_length() {
            return Err(DigestError::Length { algorithm, found: hex.len() });
        }
        if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(DigestError::NotLowerCaseHex { text: shortened(&text) });
        }
        Ok(Digest { text })
    }
}

impl TryFrom<&oci_spec::image::Digest> for Digest {
    type Error = DigestError;

    fn try_from(digest: &oci_spec::image::Digest) -> Result<Self, Self::Error> {
        digest.as_ref().parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text
    }
}

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no colon.
    #[error("digest {text:?} has no algorithm (expected sha256:… or sha512:…)")]
    NoAlgorithm {
        /// The text, shortened.
        text: String,
    },
    /// Neither `sha256` nor `sha512`.
    #[error("digest algorithm {algorithm:?} is not supported (sha256 and sha512 are)")]
    UnknownAlgorithm {
        /// The text before the colon, shortened.
        algorithm: String,
    },
    /// Too short or too long.
    #[error("a {algorithm} digest has {} hex digits, this one has {found}", algorithm.hex_length())]
    Length {
        /// The algorithm named.
        algorithm: Algorithm,
        /// The number of characters after the colon.
        found: usize,
    },
    /// Something else than `0-9a-f`.
    #[error("digest {text:?} is not lower-case hex")]
    NotLowerCaseHex {
        /// The text, shortened.
        text: String,
    },
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Hashes content that comes in pieces.
#[derive(Clone)]
pub struct Digester {
    state: State,
}

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Digester {
    /// Begins with no content.
    pub fn new(algorithm: Algorithm) -> Digester {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::default()),
        };
        Digester { state }
    }

    /// Appends `content`.
    pub fn update(&mut self, content: &[u8]) {
        match &mut self.state {
            State::Sha256(hasher) => hasher.update(content),
            State::Sha512(hasher) => hasher.update(content),
        }
    }

    /// The digest of all that was appended.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(hasher) => Digest::from_hash(Algorithm::Sha256, &hasher.finalize()),
            State::Sha512(hasher) => Digest::from_hash(Algorithm::Sha512, &hasher.finalize()),
        }
    }
}

impl fmt::Debug for Digester {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.state {
            State::Sha256(_) => "Digester(sha256)",
            State::Sha512(_) => "Digester(sha512)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of FIPS 180-4 for "abc".
    const ABC_256: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_512: &str = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                           2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn digests_agree_with_the_published_vectors() {
        assert_eq!(Digest::sha256_of(b"abc").as_str(), ABC_256);
        assert_eq!(Digest::of(Algorithm::Sha512, b"abc").as_str(), ABC_512);
        let mut pieces = ABC_512.parse::<Digest>().unwrap().digester();
        pieces.update(b"a");
        pieces.update(b"bc");
        assert_eq!(pieces.finish().as_str(), ABC_512);
    }

    #[test]
    fn a_digest_gives_its_parts_back() {
        let digest: Digest = ABC_256.parse().unwrap();
        assert_eq!(digest.algorithm(), Algorithm::Sha256);
        assert_eq!(digest.hex(), &ABC_256[7..]);
        assert!(digest.matches(b"abc") && !digest.matches(b"abd"));
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{ABC_256}\""));
        assert_eq!(serde_json::from_str::<Digest>(&format!("\"{ABC_256}\"")).unwrap(), digest);
    }

    #[test]
    fn what_could_escape_a_directory_or_compare_unequal_is_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:../../../../etc/passwd",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "SHA256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD",
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015a",
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad0",
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015a/",
            "sha512:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?} was accepted");
            assert!(serde_json::from_value::<Digest>(text.into()).is_err(), "{text:?} was accepted");
        }
    }
}
