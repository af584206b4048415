//! What this machine spends on the processes of the daemon: their memory, descriptors and threads (proc(5)).

use std::fs;
use std::path::Path;

/// What several processes take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// How many there are.
    pub processes: u64,
    /// Bytes of memory that they have mapped and that are there, shared ones counted for each.
    pub resident: u64,
    /// Bytes of memory that nobody else has.
    pub private: u64,
    /// Open files.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Spent {
    /// Adds a process; one that has ended counts nothing.
    pub fn add(&mut self, pid: u32) {
        let process = Path::new("/proc").join(pid.to_string());
        let Ok(memory) = fs::read_to_string(process.join("smaps_rollup")) else { return };
        let count = |directory: &str| {
            fs::read_dir(process.join(directory)).map_or(0, |entries| entries.count() as u64)
        };
        self.processes += 1;
        self.resident += bytes(&memory, &["Rss:"]);
        self.private += bytes(&memory, &["Private_Clean:", "Private_Dirty:"]);
        self.descriptors += count("fd");
        self.threads += count("task");
    }
}

/// The processes that a process has started and that are there; none if it has ended itself.
pub fn children(pid: u32) -> Vec<u32> {
    let list = Path::new("/proc").join(pid.to_string()).join("task").join(pid.to_string()).join("children");
    fs::read_to_string(list).map_or_else(
        |_| Vec::new(),
        |list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
    )
}

/// The sum of those lines, which tell kibibytes.
fn bytes(memory: &str, names: &[&str]) -> u64 {
    let kibibytes = memory.lines().filter_map(|line| {
        let (name, amount) = line.split_once(char::is_whitespace)?;
        names.contains(&name).then_some(())?;
        amount.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    kibibytes.sum::<u64>().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_what_the_kernel_says_and_one_that_is_gone_nothing() {
        let mut spent = Spent::default();
        spent.add(u32::MAX);
        assert_eq!(spent, Spent::default());
        spent.add(std::process::id());
        assert!(spent.processes == 1 && spent.threads >= 1 && spent.descriptors >= 3, "{spent:?}");
        assert!(0 < spent.private && spent.private <= spent.resident, "{spent:?}");
        let told =
            "5d-7ff ---p 0 00:00 0  [rollup]\nRss:  1848 kB\nPrivate_Clean:  4 kB\nPrivate_Dirty: 92 kB\n";
        assert_eq!(bytes(told, &["Private_Clean:", "Private_Dirty:"]), 96 << 10);
    }
}
