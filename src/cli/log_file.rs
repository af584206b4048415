//! The log of a serving process in the store: made with its first line, as most have none.
//!
//! Who has something to say may say it for years, and who is killed leaves his log behind. So a log that has become long is set aside, in
//! the place of the one that was before, and of the logs that there are only the newest stay.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A log that has so many bytes is set aside; so one process has twice as many at most.
const LONG: u64 = 1 << 20;

/// How many logs stay when another one is made, with those that were set aside.
const MOST: usize = 256;

/// A file that appears, with its directory, when something is written to it.
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    /// Bytes that are in it.
    length: u64,
}

impl LogFile {
    /// The log at that path; what is there already stays.
    pub fn new(path: PathBuf) -> LogFile {
        LogFile { path, file: None, length: 0 }
    }

    fn make(&mut self) -> io::Result<File> {
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
            // That there are too many is no reason to say nothing.
            let _ = keep_newest(directory, MOST);
        }
        let file = File::options().create(true).append(true).open(&self.path)?;
        self.length = file.metadata()?.len();
        Ok(file)
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.is_some() && self.length >= LONG {
            // Another process may have removed it.
            let _ = std::fs::rename(&self.path, self.path.with_extension("log.before"));
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = self.make()?;
                self.file.insert(file)
            }
        };
        let written = file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Nothing is kept back.
        Ok(())
    }
}

/// Removes all files of a directory but those that were written to last.
fn keep_newest(directory: &Path, most: usize) -> io::Result<()> {
    let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // One that is gone was removed by another process.
        if let Ok(metadata) = entry.metadata()
            && metadata.is_file()
        {
            files.push((metadata.modified()?, entry.path()));
        }
    }
    files.sort_unstable();
    let too_many = files.len().saturating_sub(most);
    for (_, path) in files.drain(..too_many) {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_long_is_set_aside_and_the_one_before_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log/7.log");
        let mut log = LogFile::new(path.clone());
        let line = [b'x'; 1 << 16];
        for _ in 0..50 {
            log.write_all(&line).unwrap();
        }
        let length = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert_eq!(length(&path.with_extension("log.before")), LONG);
        assert_eq!(length(&path), 50 * line.len() as u64 - 3 * LONG);
        // Another process of that number goes on with it.
        LogFile::new(path.clone()).write_all(b"more").unwrap();
        assert_eq!(length(&path), 50 * line.len() as u64 - 3 * LONG + 4);
    }

    #[test]
    fn only_the_newest_logs_stay() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..9 {
            let file = File::create(directory.path().join(format!("{number}.log"))).unwrap();
            let age = std::time::Duration::from_secs(1000 * (number * 5 % 9));
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        keep_newest(directory.path(), 4).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["0.log", "2.log", "4.log", "6.log"]);
    }
}
