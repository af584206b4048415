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

/// Runs a script in a container of the image; it must print `expected` last. Of the image, at most `part` hundredths come.
#[track_caller]
fn runs(name: &str, script: &str, expected: &str, part: u64) {
    let Some(directory) = image(name) else { return };
    let layout = Layout::open(directory);
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let reference = layout.serve(&registry, name, "estargz");
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    containerd.rpull(&reference);
    let output = containerd.run_container(&reference, name, &["bash", "-ec", script]);
    assert_eq!(output.lines().last(), Some(expected), "{output}\n{}", daemon.log());
    let (came, all) = (bytes(&registry.counters()), layer_bytes(&layout, "estargz"));
    println!("{name}: {came} of {all} bytes, {} requests for blobs", registry.counters().blobs);
    assert!(came * 100 < all * part, "{came} of {all}");
    drop(containerd);
    daemon.terminate();
}

#[test]
fn redis_counts() {
    let script = "redis-server --port 0 --unixsocket /tmp/redis --daemonize yes >/dev/null
        until redis-cli -s /tmp/redis ping 2>/dev/null; do sleep 0.1; done
        redis-cli -s /tmp/redis set answer 41 && redis-cli -s /tmp/redis incr answer";
    runs("redis", script, "42", 60);
}

#[test]
fn nginx_serves() {
    let script = "echo 'served by nginx' >/var/www/html/index.html
        nginx
        exec 3<>/dev/tcp/127.0.0.1/80
        printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' >&3
        cat <&3";
    runs("nginx", script, "served by nginx", 60);
}

#[test]
fn postgres_answers() {
    let script = "cd /tmp; PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
        as() { setpriv --reuid postgres --regid postgres --clear-groups \"$@\"; }
        as initdb --pgdata /tmp/data >/tmp/log
        as pg_ctl --pgdata /tmp/data --options \"-k /tmp -c listen_addresses=\" --wait --silent --log /tmp/server.log start
        as psql --host /tmp --dbname postgres --tuples-only --no-align --command 'select sum(n) from generate_series(1, 100) n'";
    runs("postgres", script, "5050", 60);
}

#[test]
fn gcc_compiles() {
    let script = "cd /tmp
        printf '#include <stdio.h>\\nint main(void) { return printf(\"compiled\\\\n\") < 0; }\\n' >a.c
        gcc -O2 -o a a.c && ./a";
    runs("gcc", script, "compiled", 60);
}
