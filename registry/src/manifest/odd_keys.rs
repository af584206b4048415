//! Keys that some readers take for another one: those of the project's Go relatives compare the names of fields without their case, and
//! of two that are equal so, the last one counts. A document with such a key is another image there than here.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Fields of manifests, indexes, descriptors and platforms (OCI image specification).
const FIELDS: [&str; 18] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
    "digest",
    "size",
    "urls",
    "data",
    "platform",
    "architecture",
    "os",
    "os.version",
    "os.features",
    "variant",
];

/// Whether a key is none of the fields, but would be without its case: as Unicode folds it, which has two more letters for `s` and `k`.
pub(super) fn is_odd(key: &str) -> bool {
    let folded = |letter: char| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    let equals = |field: &&str| key.chars().map(folded).eq(field.chars().map(folded));
    !FIELDS.contains(&key) && FIELDS.iter().any(equals)
}

/// The first odd key of a descriptor, or of a list of them. Only their platform has fields of its own: the keys of annotations are
/// compared as they are everywhere, and what is unknown means nothing to anybody.
pub(super) struct OddKey(pub(super) Option<String>);

impl<'de> Deserialize<'de> for OddKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OddKeyVisitor).map(OddKey)
    }
}

struct OddKeyVisitor;

impl<'de> Visitor<'de> for OddKeyVisitor {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut odd = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "platform" {
                odd = odd.or(map.next_value::<OddKey>()?.0);
                continue;
            }
            map.next_value::<IgnoredAny>()?;
            odd = odd.or(is_odd(&key).then_some(key));
        }
        Ok(odd)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut odd = None;
        while let Some(OddKey(found)) = list.next_element()? {
            odd = odd.or(found);
        }
        Ok(odd)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}
