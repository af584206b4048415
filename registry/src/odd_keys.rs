//! Keys that some readers take for another one: those of the project's Go relatives compare the names of fields without their case, and
//! of two that are equal so, the last one counts. A document with such a key is another image there than here.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The fields of one kind of JSON object. What is not among them means nothing to anybody; keys that are compared as they are everywhere,
/// such as those of annotations and labels, are in objects that have no shape.
#[derive(Debug)]
pub struct Shape {
    /// Their names.
    pub fields: &'static [&'static str],
    /// Those that hold an object, or a list of objects, with fields of their own.
    pub inside: &'static [(&'static str, &'static Shape)],
}

impl Shape {
    /// Whether a key is none of the fields, but would be without its case: as Unicode folds it, which has two more letters for `s` and `k`.
    pub fn is_odd(&self, key: &str) -> bool {
        let folded = |letter: char| match letter {
            'ſ' => 's',
            '\u{212a}' => 'k',
            other => other.to_ascii_lowercase(),
        };
        let equals = |field: &&str| key.chars().map(folded).eq(field.chars().map(folded));
        !self.fields.contains(&key) && self.fields.iter().any(equals)
    }

    /// The first odd key of the object in these bytes, or of those that are inside, if there is one.
    ///
    /// # Errors
    /// If it is no JSON.
    pub fn odd_key(&'static self, json: &[u8]) -> Result<Option<String>, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let odd = self.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(odd)
    }
}

/// The first odd key of an object of that shape, or of a list of them.
impl<'de> DeserializeSeed<'de> for &'static Shape {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(KeyVisitor(self))
    }
}

struct KeyVisitor(&'static Shape);

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut odd = None;
        while let Some(key) = map.next_key::<String>()? {
            match self.0.inside.iter().find(|(field, _)| *field == key) {
                Some((_, shape)) => odd = odd.or(map.next_value_seed(*shape)?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                    odd = odd.or(self.0.is_odd(&key).then_some(key));
                }
            }
        }
        Ok(odd)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut odd = None;
        while let Some(found) = list.next_element_seed(self.0)? {
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
