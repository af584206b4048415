//! Platforms and which entry of an image index suits one.
//!
//! The rules are containerd's: names are normalised (`x86_64` is `amd64`, `aarch64` is `arm64`, `arm64/v8` is `arm64`,
//! `arm` is `arm/v7`), and a machine of a later variant runs images of an earlier one, the latest that suits it first.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Descriptor;

/// An operating system, an architecture and its variant, normalised.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Number of the variant; 0 is the architecture's base (`amd64`, `arm64`).
    variant: Option<Variant>,
}

/// `v8` or `v8.1`: major and minor number.
type Variant = (u8, u8);

impl Platform {
    /// The platform this program was built for; Linux, as images that run here are.
    pub fn host() -> Platform {
        let (architecture, variant) = normalised(std::env::consts::ARCH, None);
        Platform { os: "linux".to_owned(), architecture, variant }
    }

    /// The operating system, `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The architecture in Go's words, `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// How well an image for `offered` suits this machine: 0 is exact, larger is older, `None` does not run.
    fn distance(&self, offered: &Platform) -> Option<u16> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let number = |variant: Option<Variant>| {
            let (major, minor) = variant.unwrap_or_else(|| base_variant(&self.architecture));
            u16::from(major) << 8 | u16::from(minor)
        };
        number(self.variant).checked_sub(number(offered.variant))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match self.variant {
            Some((major, 0)) => write!(formatter, "/v{major}"),
            Some((major, minor)) => write!(formatter, "/v{major}.{minor}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Parses `os/architecture[/variant]`, or an architecture alone (for Linux).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || PlatformError { text: text.chars().take(100).collect() };
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let sound = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(sound) {
            return Err(refused());
        }
        let (os, architecture, variant) = match parts[..] {
            [architecture] if is_known_architecture(architecture) => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(refused()),
        };
        if variant.is_some_and(|variant| parsed_variant(variant).is_none()) {
            return Err(refused());
        }
        let (architecture, variant) = normalised(architecture, variant);
        Ok(Platform { os: os.to_owned(), architecture, variant })
    }
}

/// A text that names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a platform (expected os/architecture[/variant], such as linux/arm64/v8)")]
pub struct PlatformError {
    text: String,
}

/// The entries of an index that could hold the image for `platform`, best first.
///
/// Entries that are no images (attestations, indexes of files, other artifacts) are skipped. Entries that name no platform
/// come last, nested indexes before manifests, because only their content can tell.
pub fn candidates<'a>(entries: &'a [Descriptor], platform: &Platform) -> Vec<&'a Descriptor> {
    const UNNAMED_INDEX: u32 = 1 << 16;
    const UNNAMED_MANIFEST: u32 = UNNAMED_INDEX + 1;
    let unnamed_manifests = entries
        .iter()
        .filter(|entry| is_image(entry) && offered(entry).is_none() && !is_index(entry))
        .count();
    let mut ranked: Vec<(u32, &Descriptor)> = entries
        .iter()
        .filter(|entry| is_image(entry))
        .filter_map(|entry| {
            let rank = match offered(entry) {
                Some(offered) => u32::from(platform.distance(&offered)?),
                None if is_index(entry) => UNNAMED_INDEX,
                // Of several manifests that name no platform none can be preferred.
                None if unnamed_manifests == 1 => UNNAMED_MANIFEST,
                None => return None,
            };
            Some((rank, entry))
        })
        .collect();
    // Stable, so that of equals the first listed wins.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, entry)| entry).collect()
}

/// The platforms that an index offers, for an error message.
pub fn offered_platforms(entries: &[Descriptor]) -> Vec<String> {
    entries
        .iter()
        .filter(|entry| is_image(entry))
        .filter_map(offered)
        .map(|platform| platform.to_string())
        .collect()
}

fn offered(entry: &Descriptor) -> Option<Platform> {
    let platform = entry.platform().as_ref()?;
    let (architecture, variant) =
        normalised(&platform.architecture().to_string(), platform.variant().as_deref());
    Some(Platform { os: platform.os().to_string().to_ascii_lowercase(), architecture, variant })
}

fn is_index(entry: &Descriptor) -> bool {
    crate::manifest::is_index_media_type(entry.media_type().as_ref())
}

/// Whether an entry of an index is an image, or an index of images: no attestation, no index of files, no other artifact.
pub fn is_image(entry: &Descriptor) -> bool {
    let attestation = entry
        .annotations()
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key("vnd.docker.reference.type"));
    let unknown = entry.platform().as_ref().is_some_and(|platform| {
        platform.os().to_string() == "unknown" || platform.architecture().to_string() == "unknown"
    });
    // SOCI and others add artifacts under the image's own platform; only this field tells them apart.
    let artifact = entry.artifact_type().as_ref().is_some_and(|kind| {
        !matches!(
            kind.as_ref(),
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
        )
    });
    let media_type = entry.media_type().as_ref();
    !attestation
        && !unknown
        && !artifact
        && (crate::manifest::is_manifest_media_type(media_type) || is_index(entry))
}

fn is_known_architecture(name: &str) -> bool {
    matches!(
        name,
        "amd64"
            | "x86_64"
            | "arm64"
            | "aarch64"
            | "arm"
            | "386"
            | "ppc64le"
            | "riscv64"
            | "s390x"
            | "loong64"
    )
}

fn base_variant(architecture: &str) -> Variant {
    match architecture {
        "amd64" => (1, 0),
        "arm64" => (8, 0),
        "arm" => (7, 0),
        _ => (0, 0),
    }
}

fn parsed_variant(variant: &str) -> Option<Variant> {
    let number = variant.strip_prefix('v').unwrap_or(variant);
    match number.split_once('.') {
        Some((major, minor)) => Some((major.parse().ok()?, minor.parse().ok()?)),
        None => Some((number.parse().ok()?, 0)),
    }
}

/// The architecture in Go's words, and its variant unless that is the base.
fn normalised(architecture: &str, variant: Option<&str>) -> (String, Option<Variant>) {
    let variant = variant.filter(|variant| !variant.is_empty()).and_then(parsed_variant);
    let architecture = architecture.to_ascii_lowercase();
    let (name, variant) = match architecture.as_str() {
        "x86_64" | "x86-64" => ("amd64", variant),
        "aarch64" => ("arm64", variant),
        "armhf" => ("arm", Some((7, 0))),
        "armel" => ("arm", Some((6, 0))),
        "x86" | "i386" | "i686" => ("386", None),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", variant),
        "powerpc64le" => ("ppc64le", variant),
        "loongarch64" => ("loong64", variant),
        other => (other, variant),
    };
    let base = base_variant(name);
    // `arm` is written with its variant always, the others without their base.
    let variant = match (name, variant) {
        ("arm", None) => Some(base),
        ("arm", some) => some,
        (_, some) if some == Some(base) => None,
        (_, some) => some,
    };
    (name.to_owned(), variant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::ImageIndex;

    #[test]
    fn platforms_are_normalised() {
        for (typed, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v8.1", "linux/arm64/v8.1"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("Linux/ARM/6", "linux/arm/v6"),
        ] {
            assert_eq!(typed.parse::<Platform>().unwrap().to_string(), shown, "{typed}");
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/amd64/fast", "li nux/amd64"]
        {
            assert!(text.parse::<Platform>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn the_best_variant_comes_first_and_what_is_no_image_is_skipped() {
        let entry = |number: u32, rest: &str| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"sha256:{number:064}"{rest}}}"#
            )
        };
        let platform = |os: &str, architecture: &str, variant: &str| {
            let variant =
                if variant.is_empty() { String::new() } else { format!(r#","variant":"{variant}""#) };
            format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"{variant}}}"#)
        };
        let attestation = r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#;
        let soci = r#","artifactType":"application/vnd.amazon.soci.index.v2+json""#;
        let entries = [
            entry(1, &(platform("unknown", "unknown", "") + attestation)),
            entry(2, &(platform("linux", "amd64", "") + soci)),
            entry(3, &platform("linux", "arm", "v5")),
            entry(4, &platform("linux", "arm", "v7")),
            entry(5, &platform("linux", "arm", "v6")),
            entry(6, &platform("linux", "arm64", "v8")),
            entry(7, &platform("linux", "amd64", "v3")),
            entry(8, &platform("linux", "amd64", "")),
            entry(9, &platform("windows", "amd64", "")),
            entry(10, ""),
        ]
        .join(",");
        let index: ImageIndex =
            serde_json::from_str(&format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#)).unwrap();
        let chosen = |platform: &str| -> Vec<u32> {
            candidates(index.manifests(), &platform.parse().unwrap())
                .iter()
                .map(|entry| entry.digest().digest().parse().unwrap())
                .collect()
        };
        assert_eq!(chosen("linux/arm/v7"), [4, 5, 3, 10]);
        assert_eq!(chosen("linux/arm/v6"), [5, 3, 10]);
        assert_eq!(chosen("linux/arm64"), [6, 10]);
        assert_eq!(chosen("linux/amd64"), [8, 10]);
        assert_eq!(chosen("linux/amd64/v4"), [7, 8, 10]);
        assert_eq!(chosen("linux/amd64/v2"), [8, 10]);
        assert_eq!(chosen("windows/amd64"), [9, 10]);
    }
}
