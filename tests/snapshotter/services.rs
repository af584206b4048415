//! Promise: what people run in containers runs before its image is here: servers answer, a compiler compiles. The images are made of Debian
//! packages (`scripts/images --services`); where one is not, in the folder of real images or in that of `PEEL_TEST_SERVICES`, its test says so and does
//! nothing.

use std::path::PathBuf;

use super::{bytes, layer_bytes};
use crate::support::containerd::{Containerd, Daemon};
use crate::support::image::Layout;
use crate::support::peel::Peel;
use crate::support::registry::FakeRegistry;
use crate::support::tools::real_images;

/// Its folder, if it is there.
fn image(name: &str) -> Option<PathBuf> {
    let places = [std::env::var_os("PEEL_TEST_SERVICES").map(PathBuf::from), Some(real_images())];
    let found = places
        .into_iter()
        .flatten()
        .map(|place| place.join(name))
        .find(|image| image.join("index.json").exists());
    if found.is_none() {
        println!("{name} is not there: scripts/images --services makes it");
    }
    found
}

/// Runs a script in a container of the image; it must print the sum last. Of the image, at most `part` hundredths come.
#[track_caller]
fn runs(name: &str, script: &str, part: u64) {
    let Some(directory) = image(name) else { return };
    let layout = Layout::open(directory);
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let reference = layout.serve(&registry, name, "estargz");
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    containerd.rpull(&reference);
    let output = containerd.run_container(&reference, name, &["bash", "-ec", script]);
    assert_eq!(output.lines().last(), Some("5050"), "{output}\n{}", daemon.log());
    let (came, all) = (bytes(&registry.counters()), layer_bytes(&layout, "estargz"));
    println!("{name}: {came} of {all} bytes, {} requests for blobs", registry.counters().blobs);
    assert!(came * 100 < all * part, "{came} of {all}");
    drop(containerd);
    daemon.terminate();
}

/// A test for each of `scripts/workloads`, which end with the sum of the numbers from 1 to 100; and how much of the image it may take.
macro_rules! workloads {
    ($($promise:ident: $name:literal, $part:literal;)*) => {
        $(#[test]
        fn $promise() {
            runs($name, include_str!(concat!("../../scripts/workloads/", $name)), $part);
        })*
    };
}

workloads! {
    python_calculates: "python", 20;
    node_calculates: "node", 60;
    a_class_is_compiled_and_run: "jdk", 90;
    go_builds: "golang", 60;
    gcc_compiles: "gcc", 60;
    redis_counts: "redis", 60;
    nginx_serves: "nginx", 60;
    postgres_answers: "postgres", 60;
}
