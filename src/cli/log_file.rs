//! The log of a serving process in the store: made with its first line, as most have none.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// A file that appears, with its directory, when something is written to it.
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
}

impl LogFile {
    /// The log at that path; what is there already stays.
    pub fn new(path: PathBuf) -> LogFile {
        LogFile { path, file: None }
    }

    fn make(&self) -> io::Result<File> {
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        File::options().create(true).append(true).open(&self.path)
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = self.make()?;
                self.file.insert(file)
            }
        };
        file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Nothing is kept back.
        Ok(())
    }
}
