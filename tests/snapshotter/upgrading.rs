//! Promise: a newer `peel serve` moves the trees of running containers to its program, and so does `peel upgrade --all`: containers that read
//! notice nothing.

use super::killed::READER;
use super::served_python;
use crate::support::containerd::{Containerd, Daemon};
use crate::support::peel::{Peel, run_to_end};
use std::path::Path;

#[test]
fn the_tree_of_a_running_container_moves_to_the_program_that_was_installed_since() {
    let (_layout, _registry, reference) = served_python();
    let peel = Peel::new();
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    assert!(containerd.ctr_pulled(&peel, &reference, &[]).iter().all(|state| state == "lazy"));
    let run = ["run", "--detach", "--snapshotter", "peel", &reference, "upgraded", "sleep", "3600"];
    containerd.ctr(&run);
    let (holders, other) = (peel.holders(), peel.other_program());
    let is_served_by = |program: &Path| {
        let processes = [peel.holders(), peel.servers_of("serve-stack")].concat();
        let of =
            |process: &i32| std::fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default() == program;
        processes.len() == 2 && processes.iter().all(of)
    };
    let first = std::fs::canonicalize(env!("CARGO_BIN_EXE_peel")).unwrap();
    assert!(is_served_by(&first));

    let exec = ["tasks", "exec", "--exec-id", "reader", "upgraded", "python3", "-c", READER, "/stop"];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| containerd.ctr(&exec));
        daemon.terminate();
        let address = peel.scratch().join("peel.sock");
        let serve = ["serve", "--upgrade", "--address", address.to_str().unwrap()];
        let daemon = Daemon::start_by(peel.command_of(&other, &serve), &peel);
        peel.wait_for(|| is_served_by(&other));
        assert!(!reader.is_finished(), "{}", daemon.log());
        let outcome = run_to_end(peel.command_of(&first, &["upgrade", "--all"]), peel.scratch());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(is_served_by(&first));
        assert_eq!(peel.holders(), holders);
        containerd.ctr(&["tasks", "exec", "--exec-id", "stop", "upgraded", "touch", "/stop"]);
        println!("the longest wait, rounds, files, digest: {}", reader.join().unwrap().trim_end());
        containerd.wait_for_snapshotter();
        containerd.ctr(&["tasks", "rm", "--force", "upgraded"]);
        daemon.terminate();
    });
    drop(containerd);
    peel.is_clean();
}
