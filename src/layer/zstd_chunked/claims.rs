//! What a layer's annotations claim of its TOC. They are part of the manifest, so this is what is vouched for.

use std::collections::BTreeMap;
use std::fmt;

use peelfs_registry::Digest;

use super::{Place, Positions};
use crate::layer::estargz::TOC_DIGEST_ANNOTATION;
use crate::layer::toc::{hex, sha256};

/// What the names of annotations begin with: in the podman family today; in the stargz project, and in podman's at first.
const PREFIXES: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];

/// The only type of TOC that there is: JSON like that of the CRFS project.
pub(super) const TYPE_CRFS: u64 = 1;

/// What the annotations of a layer's descriptor claim. At least one of the TOC's digests is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Where the TOC is (`manifest-position`), and the tar-split data (`tarsplit-position`).
    pub positions: Option<Positions>,
    /// SHA-256 of the compressed TOC (`manifest-checksum`).
    pub compressed_digest: Option<[u8; 32]>,
    /// SHA-256 of the TOC's JSON (the eStargz annotation).
    pub json_digest: Option<[u8; 32]>,
    /// SHA-256 of the compressed tar-split data (`tarsplit-checksum`); newer writers put it into the TOC.
    pub tar_split_digest: Option<[u8; 32]>,
}

impl fmt::Display for Claims {
    /// In words that are the same for the same claims, and for no others.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Claims { positions, compressed_digest, json_digest, tar_split_digest } = self;
        let place = |place: Option<Place>| {
            place.map_or("-".to_owned(), |place| {
                format!("{}:{}:{}", place.offset, place.compressed_length, place.decoded_length)
            })
        };
        let digest = |digest: &Option<[u8; 32]>| digest.map_or("-".to_owned(), |digest| hex(&digest));
        write!(
            formatter,
            "at {} {}, tar-split at {} {}, JSON {}",
            place(positions.map(|positions| positions.toc)),
            digest(compressed_digest),
            place(positions.and_then(|positions| positions.tar_split)),
            digest(tar_split_digest),
            digest(json_digest),
        )
    }
}

impl Claims {
    /// The claims of these annotations; `None` if they vouch for no TOC, or for one of a kind that is not known: malformed annotations
    /// are as good as none, for without them the layer is an ordinary tar.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Claims> {
        let json_digest = annotations.get(TOC_DIGEST_ANNOTATION).and_then(|text| sha256(text));
        let of_prefix = |prefix: &str| {
            let get = |name: &str| annotations.get(&format!("{prefix}{name}")).map(String::as_str);
            let compressed_digest = get("manifest-checksum").and_then(sha256);
            let toc = get("manifest-position").and_then(toc_place);
            let tar_split = get("tarsplit-position").and_then(place);
            // A position alone is of no use, unless the eStargz annotation vouches for what is there.
            (compressed_digest.is_some() || toc.is_some()).then(|| Claims {
                positions: toc.map(|toc| Positions { toc, tar_split }),
                compressed_digest,
                json_digest,
                tar_split_digest: get("tarsplit-checksum").and_then(sha256),
            })
        };
        let none = Claims { positions: None, compressed_digest: None, json_digest, tar_split_digest: None };
        let claims = PREFIXES.into_iter().find_map(of_prefix).unwrap_or(none);
        (claims.compressed_digest.is_some() || claims.json_digest.is_some()).then_some(claims)
    }
}

/// The annotations of a layer with that TOC at that place, as the podman family writes them.
pub(super) fn annotations(toc: &Digest, positions: &Positions) -> BTreeMap<String, String> {
    let text =
        |place: &Place| format!("{}:{}:{}", place.offset, place.compressed_length, place.decoded_length);
    let key = |name: &str| format!("{}{name}", PREFIXES[0]);
    let mut annotations = BTreeMap::from([
        (key("manifest-checksum"), toc.to_string()),
        (key("manifest-position"), format!("{}:{TYPE_CRFS}", text(&positions.toc))),
    ]);
    annotations.extend(positions.tar_split.map(|place| (key("tarsplit-position"), text(&place))));
    annotations
}

/// `offset:compressed:decoded:type`.
fn toc_place(text: &str) -> Option<Place> {
    let (text, kind) = text.rsplit_once(':')?;
    (number(kind)? == TYPE_CRFS).then(|| place(text))?
}

/// `offset:compressed:decoded`.
fn place(text: &str) -> Option<Place> {
    let mut parts = text.split(':').map(number);
    let mut next = || parts.next().flatten();
    let place = Place { offset: next()?, compressed_length: next()?, decoded_length: next()? };
    parts.next().is_none().then_some(place)
}

fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [u8; 32] = [0x11; 32];
    const TWO: [u8; 32] = [0x22; 32];

    fn digest(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    fn claims(annotations: &[(&str, &str)]) -> Option<Claims> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Claims::from_annotations(&annotations.iter().map(own).collect())
    }

    fn place(offset: u64, compressed_length: u64, decoded_length: u64) -> Place {
        Place { offset, compressed_length, decoded_length }
    }

    #[test]
    fn both_dialects_are_understood() {
        let (one, two) = (&digest("11"), &digest("22"));
        let podman = claims(&[
            ("io.github.containers.zstd-chunked.manifest-checksum", one),
            ("io.github.containers.zstd-chunked.manifest-position", "1011:613:2109:1"),
            ("io.github.containers.zstd-chunked.tarsplit-position", "1632:1233:20074"),
        ]);
        let positions = Positions { toc: place(1011, 613, 2109), tar_split: Some(place(1632, 1233, 20074)) };
        let expected = Claims {
            positions: Some(positions),
            compressed_digest: Some(ONE),
            json_digest: None,
            tar_split_digest: None,
        };
        assert_eq!(podman, Some(expected));
        let stargz = claims(&[
            ("io.containers.zstd-chunked.manifest-checksum", one),
            ("io.containers.zstd-chunked.manifest-position", "1171:771:3381:1"),
            (TOC_DIGEST_ANNOTATION, two),
        ]);
        let expected = Claims {
            positions: Some(Positions { toc: place(1171, 771, 3381), tar_split: None }),
            compressed_digest: Some(ONE),
            json_digest: Some(TWO),
            tar_split_digest: None,
        };
        assert_eq!(stargz, Some(expected));
    }

    #[test]
    fn what_is_written_is_understood() {
        let positions = Positions { toc: place(1011, 613, 2109), tar_split: Some(place(1632, 1233, 20074)) };
        let written = annotations(&digest("11").parse().unwrap(), &positions);
        let claims = Claims::from_annotations(&written).unwrap();
        assert_eq!((claims.positions, claims.compressed_digest), (Some(positions), Some(ONE)));
    }

    #[test]
    fn the_annotations_of_two_dialects_are_not_mixed() {
        let (one, two) = (&digest("11"), &digest("22"));
        let both = claims(&[
            ("io.containers.zstd-chunked.manifest-checksum", two),
            ("io.containers.zstd-chunked.manifest-position", "7:8:9:1"),
            ("io.github.containers.zstd-chunked.manifest-checksum", one),
        ]);
        let both = both.unwrap();
        assert_eq!((both.compressed_digest, both.positions), (Some(ONE), None));
    }

    #[test]
    fn what_vouches_for_nothing_is_none() {
        let position = "io.github.containers.zstd-chunked.manifest-position";
        let checksum = "io.github.containers.zstd-chunked.manifest-checksum";
        assert_eq!(claims(&[]), None);
        assert_eq!(claims(&[(position, "1:2:3:1")]), None);
        for malformed in ["", "sha256:", "md5:11", &digest("1"), &digest("1G"), &digest("AB")] {
            assert_eq!(claims(&[(checksum, malformed), (position, "1:2:3:1")]), None, "{malformed}");
        }
    }

    #[test]
    fn malformed_positions_are_as_good_as_none() {
        let position = "io.github.containers.zstd-chunked.manifest-position";
        let checksum = "io.github.containers.zstd-chunked.manifest-checksum";
        for malformed in [
            "",
            "1",
            "1:2:3",
            "1:2:3:2",
            "1:2:3:1:1",
            "-1:2:3:1",
            "+1:2:3:1",
            " 1:2:3:1",
            "1:2::1",
            "a:2:3:1",
            "18446744073709551616:2:3:1",
        ] {
            let claims = claims(&[(checksum, &digest("11")), (position, malformed)]).unwrap();
            assert_eq!(claims.positions, None, "{malformed}");
        }
    }
}
