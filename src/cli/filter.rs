//! Which cache records are meant, as people type it: `--filter KEY=VALUE`, several times. Several types or states mean any of them; all else
//! must hold together.

use std::time::{SystemTime, UNIX_EPOCH};

use peelfs::cache::prune::Filter;
use peelfs::store::LayerState;
use peelfs::store::record_tables::RecordType;

use super::quantity::seconds;

/// What follows `--filter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Type(RecordType),
    State(LayerState),
    /// Made so many seconds ago, or before.
    Age(u64),
    Shared(bool),
    InUse(bool),
    Mutable(bool),
    Id(String),
    Description(String),
}

/// What there is to say of records.
pub const CONDITIONS: &str = "type=TYPE, state=STATE, age=AGE, shared=BOOL, in-use=BOOL, mutable=BOOL, id=PREFIX or \
    description=TEXT";

/// Reads one condition.
pub fn condition(text: &str) -> Result<Condition, String> {
    let unknown = || format!("{text:?} is no filter; there are {CONDITIONS}");
    let (key, value) = text.split_once('=').ok_or_else(unknown)?;
    let truth = || value.parse::<bool>().map_err(|_| format!("{key} is true or false, not {value:?}"));
    Ok(match key {
        "type" => {
            let all = || RecordType::ALL.iter().map(|one| one.name()).collect::<Vec<_>>().join(", ");
            let named = RecordType::named(value);
            Condition::Type(named.ok_or_else(|| format!("{value:?} is no type; there are {}", all()))?)
        }
        "state" => {
            const STATES: &str = "lazy, partial, extracted, incomplete and poisoned";
            let named = LayerState::named(value);
            Condition::State(named.ok_or_else(|| format!("{value:?} is no state; there are {STATES}"))?)
        }
        "age" => Condition::Age(seconds(value)?),
        "shared" => Condition::Shared(truth()?),
        "in-use" => Condition::InUse(truth()?),
        "mutable" => Condition::Mutable(truth()?),
        "id" => Condition::Id(value.to_owned()),
        "description" => Condition::Description(value.to_owned()),
        _ => return Err(unknown()),
    })
}

/// The records that meet all conditions; all records if there are none.
pub fn filter(conditions: &[Condition]) -> Filter {
    let mut filter = Filter::default();
    for condition in conditions.iter().cloned() {
        match condition {
            Condition::Type(one) => filter.types.push(one),
            Condition::State(one) => filter.states.push(one),
            Condition::Age(age) => filter.made_before = Some(before(age)),
            Condition::Shared(is) => filter.is_shared = Some(is),
            Condition::InUse(is) => filter.is_in_use = Some(is),
            Condition::Mutable(is) => filter.is_mutable = Some(is),
            Condition::Id(prefix) => filter.id = prefix,
            Condition::Description(text) => filter.description = text,
        }
    }
    filter
}

/// The second after the one that is so long ago.
fn before(age: u64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64);
    now.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX)).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_and_what_is_none_is_told() {
        for (text, expected) in [
            ("type=exec.cachemount", Some(Condition::Type(RecordType::CacheMount))),
            ("state=lazy", Some(Condition::State(LayerState::Lazy))),
            ("age=2h", Some(Condition::Age(7200))),
            ("shared=false", Some(Condition::Shared(false))),
            ("in-use=true", Some(Condition::InUse(true))),
            ("mutable=true", Some(Condition::Mutable(true))),
            ("id=0a", Some(Condition::Id("0a".to_owned()))),
            ("description=a=b", Some(Condition::Description("a=b".to_owned()))),
            ("", None),
            ("shared", None),
            ("shared=maybe", None),
            ("type=other", None),
            ("state=", None),
            ("age=old", None),
            ("size=3", None),
        ] {
            assert_eq!(condition(text).ok(), expected, "{text}");
        }
        let all =
            ["type=regular", "type=internal", "id=0", "shared=true"].map(|text| condition(text).unwrap());
        let expected = Filter {
            types: vec![RecordType::Regular, RecordType::Internal],
            id: "0".to_owned(),
            is_shared: Some(true),
            ..Filter::default()
        };
        assert_eq!(filter(&all), expected);
    }
}
