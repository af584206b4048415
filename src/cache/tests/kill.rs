//! Processes that do random operations and are killed on the way: at the n-th rename, sync, unlink or database commit, with SIGKILL, so no
//! destructor runs. Before and after each operation they tell what they know. Who opens the store next must find all that was
//! complete, nothing in part, and nothing left over.
//!
//! `PEEL_MODEL_SEQUENCES=10000 cargo test --release --lib cache::` does many.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use super::model::{Known, Model, Random, Step};
use super::world::{World, as_it_is};
use super::*;
use crate::store::die_after;

const STORE: &str = "PEELFS_TEST_CACHE";
const SEED: &str = "PEELFS_TEST_SEED";
const TAG: &str = "PEELFS_TEST_TAG";
const STEPS: &str = "PEELFS_TEST_STEPS";
const OPERATIONS: usize = 25;

/// How many sequences to run.
pub(super) fn sequences(few: u64) -> u64 {
    std::env::var("PEEL_MODEL_SEQUENCES").ok().and_then(|count| count.parse().ok()).unwrap_or(few)
}

/// Tells one line, on standard error, which the test harness does not capture when it is written to like this.
fn tell(kind: &str, what: &impl serde::Serialize) {
    let line = format!("{kind} {}\n", serde_json::to_string(what).unwrap());
    let mut left = line.as_bytes();
    while !left.is_empty() {
        left = &left[rustix::io::write(rustix::stdio::stderr(), left).unwrap()..];
    }
}

/// What the started processes run. Does nothing as an ordinary test.
#[test]
fn role() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seed, tag) = (number(SEED).unwrap(), std::env::var(TAG).unwrap());
    if let Some(steps) = number(STEPS) {
        die_after(steps as i64);
    }
    let cache = open(Path::new(&path));
    let mut world = World::new(vec![cache], &tag, tag.is_empty(), seed);
    for _ in 0..OPERATIONS {
        let step = world.choose();
        tell("STEP", &step);
        world.run(&step);
        tell("MODEL", &world.model);
    }
    // It ends as it would by a signal: without letting go of anything.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

fn start(path: &Path, seed: u64, tag: &str, steps: Option<u64>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "cache::tests::kill::role", "--test-threads", "1"]);
    command.env(STORE, path).env(SEED, seed.to_string()).env(TAG, tag);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    match steps {
        Some(steps) => command.env(STEPS, steps.to_string()),
        None => command.env_remove(STEPS),
    };
    command.spawn().unwrap()
}

/// What a process knew when it was killed, and what it was doing.
fn last_words(mut child: Child) -> (Model, Option<Step>) {
    let (mut model, mut step, mut said) = (Model::default(), None, String::new());
    let mut output = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        match line.split_once(' ') {
            Some(("STEP", text)) => step = Some(serde_json::from_str(text).unwrap()),
            Some(("MODEL", text)) => (model, step) = (serde_json::from_str(text).unwrap(), None),
            _ => {
                said.push_str(&line);
                output.read_to_string(&mut said).unwrap();
            }
        }
        line.clear();
    }
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "{status}: {said}");
    (model, step)
}

/// All that was complete is there, and nothing else but what the last step may have made.
fn check(found: &Model, tag: &str, before: Model, step: Option<&Step>) {
    let expected = before.clone().after_death();
    let in_danger = step.map(|step| before.in_danger(step)).unwrap_or_default();
    let changed: BTreeSet<&String> = match step {
        Some(Step::Write { .. } | Step::Item { .. } | Step::Lease { .. }) => {
            expected.records.keys().collect()
        }
        _ => in_danger.iter().collect(),
    };
    for (id, known) in &expected.records {
        match found.records.get(id) {
            Some(there) => {
                // A ref that was being taken, turned or released may have counted or not.
                let uses = if step.is_some() { there.uses } else { known.uses };
                let is_same = *there == Known { uses, ..known.clone() };
                assert!(is_same || changed.contains(id), "{id} is {there:?}, was {known:?}");
            }
            None => assert!(in_danger.contains(id), "{id} is lost: {known:?}"),
        }
    }
    let is_ours = |name: &str| tag.is_empty() || name.starts_with(tag);
    match step {
        Some(Step::Name { name, .. } | Step::Unname { name }) => {
            let others = |model: &Model| {
                model.names.clone().into_iter().filter(|(other, _)| other != name).collect::<Vec<_>>()
            };
            assert_eq!(others(found), others(&expected));
        }
        _ => assert_eq!(found.names, expected.names),
    }
    for lease in found.leases.keys().chain(expected.leases.keys()).filter(|lease| is_ours(lease)) {
        let may_differ = match step {
            Some(Step::Lease { lease: changed, .. } | Step::EndLease { lease: changed }) => changed == lease,
            _ => false,
        };
        let kept = |model: &Model| {
            let leased = model.leases.get(lease).cloned().unwrap_or_default();
            leased.into_iter().filter(|id| !in_danger.contains(id)).collect::<Vec<_>>()
        };
        assert!(may_differ || kept(found) == kept(&expected), "{lease}");
    }
}

/// Whatever happened: nothing that is in part, and nothing that belongs to nobody.
fn check_house(cache: &Cache) {
    let (sessions, refs) = cache
        .read("count", |tables| {
            let mut refs = 0;
            for record in tables.records()? {
                refs += tables.uses(&record.id, now())?.refs;
            }
            Ok((tables.sessions()?.len(), refs))
        })
        .unwrap();
    // A session has a row from its first ref on.
    assert_eq!((sessions, refs), (0, 0));
    let mut snapshots = BTreeSet::new();
    let mut files = BTreeSet::new();
    cache
        .read("look", |tables| {
            for record in tables.records()? {
                let is_pair = tables.equal_immutable(&record.id)?.is_some();
                let is_nobodys = record.is_mutable && record.retention == Retention::Default && !is_pair;
                assert!(
                    !is_nobodys || tables.uses(&record.id, now())?.leases > 0,
                    "{} is nobody's",
                    record.id
                );
                snapshots.extend(record.snapshot);
                files.extend(tables.items(&record.id)?.into_iter().filter_map(|item| match item.place {
                    crate::store::record_tables::ItemPlace::File(name) => Some(name),
                    crate::store::record_tables::ItemPlace::Bytes(_) => None,
                }));
            }
            Ok(())
        })
        .unwrap();
    let store = cache.store();
    assert_eq!(store.snapshots().list().unwrap().into_iter().collect::<BTreeSet<_>>(), snapshots);
    assert_eq!(store.items().list().unwrap().into_iter().collect::<BTreeSet<_>>(), files);
    store.sweep().unwrap();
    for ingest in ["snapshots/ingest", "items/ingest", "layers/ingest"] {
        let left = std::fs::read_dir(store.path().join(ingest)).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "{ingest}");
    }
}

/// With all names and leases gone, everything goes.
fn check_end(cache: &Cache) {
    for (name, _) in cache.names().unwrap() {
        cache.remove_name(&name).unwrap();
    }
    for lease in cache.leases().unwrap() {
        cache.remove_lease(&lease.id).unwrap();
    }
    cache.prune(&[prune::Rule { all: true, ..prune::Rule::default() }], false).unwrap();
    assert_eq!(as_it_is(cache, ""), Model::default());
    check_house(cache);
}

#[test]
fn a_process_killed_at_any_step_loses_nothing_that_was_complete_and_leaves_nothing_over() {
    for seed in 0..sequences(60) {
        let house = House::new();
        let path = house.path().to_owned();
        let steps = Random(seed ^ 0xdead).below(120) as u64;
        let (before, step) = last_words(start(&path, seed, "", Some(steps)));
        let cache = house.another();
        eprintln!("seed {seed}, killed at step {steps}, in {step:?}");
        check(&as_it_is(&cache, ""), "", before, step.as_ref());
        check_house(&cache);
        check_end(&cache);
    }
}

#[test]
fn two_processes_on_one_store_do_not_see_each_other_even_if_one_is_killed() {
    for seed in 0..sequences(20) {
        let house = House::new();
        let path = house.path().to_owned();
        let steps = Random(seed ^ 0xbeef).below(120) as u64;
        let killed = start(&path, seed, "k", Some(steps));
        let other = start(&path, seed ^ 0xffff, "o", None);
        let (killed, other) = (last_words(killed), last_words(other));
        let cache = house.another();
        eprintln!("seed {seed}, killed at step {steps}, in {:?}", killed.1);
        let found = |tag| as_it_is(&cache, tag);
        check(&found("k"), "k", killed.0, killed.1.as_ref());
        check(&found("o"), "o", other.0, other.1.as_ref());
        check_house(&cache);
        check_end(&cache);
    }
}
