//! What the beginning of a program says that it needs before it can run: its interpreter and its libraries, read off an ELF file (System V
//! ABI, "Object Files" and "Program Loading and Dynamic Linking") or the first line of a script (execve(2), "Interpreter scripts").
//!
//! ```text
//! ELF header ──▶ program headers ──▶ PT_INTERP: the interpreter's path
//!                      │       ├───▶ PT_LOAD, writable: what the dynamic linker relocates
//!                      │       └───▶ PT_DYNAMIC ──▶ DT_NEEDED, DT_RUNPATH, DT_RPATH: places in the strings
//!                      └── PT_LOAD: where in the file ──▶ DT_STRTAB: the strings
//! ```
//!
//! Nothing is trusted: whatever a file says, a bounded number of bounded parts of it is looked at, and what comes of it are names. Parts may be
//! missing: then it is said which, and whoever has them asks again.

use std::ops::Range;

/// Most bytes of the program headers, of the dynamic section, and of a path that are looked at.
const MOST_HEADERS: u64 = 64 << 10;
const MOST_DYNAMIC: u64 = 64 << 10;
const MOST_PATH: u64 = 4096;
/// Most libraries of one program that are told.
const MOST_LIBRARIES: usize = 256;
/// The kernel reads no longer first line of a script.
const FIRST_LINE: u64 = 256;
/// The bytes of a file by which [`is_program`] knows it.
pub const MAGIC_LENGTH: usize = 4;

const ELF: &[u8] = b"\x7fELF";
const SCRIPT: &[u8] = b"#!";

/// Whether a file that begins so may be a program.
pub fn is_program(beginning: &[u8]) -> bool {
    beginning.starts_with(ELF) || beginning.starts_with(SCRIPT)
}

/// What a program needs, as it says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The program that runs it: an absolute path, or a name to be looked for in `PATH`.
    pub interpreters: Vec<Vec<u8>>,
    /// Names of libraries, or paths, as its dynamic section has them.
    pub libraries: Vec<Vec<u8>>,
    /// Directories in which they are looked for first; `$ORIGIN` in them stands for that of the program.
    pub search: Vec<Vec<u8>>,
    /// The parts of the file that are written to when it is relocated.
    pub relocated: Vec<Range<u64>>,
}

/// Why it cannot be said what a program needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// These bytes of the file are needed for that.
    Missing(Range<u64>),
    /// It is no program, or one that is damaged.
    NoProgram,
}

/// What a program of that size needs. `read` gives bytes of it, which lie within it, or nothing if they are missing.
///
/// # Errors
/// [`Unknown`].
pub fn needs_of(size: u64, read: impl Fn(Range<u64>) -> Option<Vec<u8>>) -> Result<Needs, Unknown> {
    let file = File { size, read: &read };
    let magic = file.bytes(0, MAGIC_LENGTH as u64)?;
    if magic.starts_with(SCRIPT) {
        let line = file.bytes(0, FIRST_LINE.min(size))?;
        return Ok(Needs { interpreters: interpreters_of(&line), ..Needs::default() });
    }
    if !magic.starts_with(ELF) {
        return Err(Unknown::NoProgram);
    }
    Elf::open(file)?.needs()
}

/// The interpreter that the first line of a script names, and, if that is `env`, what that is to run.
fn interpreters_of(line: &[u8]) -> Vec<Vec<u8>> {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line[SCRIPT.len().min(line.len())..]
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .map(<[u8]>::to_vec);
    let Some(first) = words.next() else { return Vec::new() };
    let is_env = first.rsplit(|byte| *byte == b'/').next() == Some(b"env");
    // Options and variables come before the command.
    let command = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'=')).filter(|_| is_env);
    std::iter::once(first).chain(command).collect()
}

struct File<'a> {
    size: u64,
    read: &'a dyn Fn(Range<u64>) -> Option<Vec<u8>>,
}

impl File<'_> {
    /// Exactly these bytes.
    fn bytes(&self, start: u64, length: u64) -> Result<Vec<u8>, Unknown> {
        let end = start.checked_add(length).filter(|end| *end <= self.size).ok_or(Unknown::NoProgram)?;
        (self.read)(start..end).ok_or(Unknown::Missing(start..end))
    }

    /// The bytes from there up to the first zero, of which there must be one soon.
    fn text(&self, start: u64) -> Result<Vec<u8>, Unknown> {
        let length = self.size.saturating_sub(start).min(MOST_PATH);
        let mut bytes = self.bytes(start, length)?;
        let end = bytes.iter().position(|byte| *byte == 0).ok_or(Unknown::NoProgram)?;
        bytes.truncate(end);
        Ok(bytes)
    }
}

/// How an ELF file writes its numbers.
#[derive(Clone, Copy)]
struct Encoding {
    is_wide: bool,
    is_big_endian: bool,
}

impl Encoding {
    /// The number of so many bytes, at most 8, at that place; 0 where there are not as many.
    fn number(self, bytes: &[u8], at: usize, length: usize) -> u64 {
        let bytes = at.checked_add(length).and_then(|end| bytes.get(at..end)).unwrap_or_default();
        let append = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        match self.is_big_endian {
            true => bytes.iter().fold(0, append),
            false => bytes.iter().rev().fold(0, append),
        }
    }

    /// An address or an offset, which is at one place or the other.
    fn word(self, bytes: &[u8], narrow: usize, wide: usize) -> u64 {
        match self.is_wide {
            true => self.number(bytes, wide, 8),
            false => self.number(bytes, narrow, 4),
        }
    }
}

/// A program header: what is at which place of the file, and at which address.
struct Segment {
    kind: u64,
    flags: u64,
    offset: u64,
    address: u64,
    length: u64,
}

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const PF_W: u64 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

struct Elf<'a> {
    file: File<'a>,
    encoding: Encoding,
    segments: Vec<Segment>,
}

impl<'a> Elf<'a> {
    fn open(file: File<'a>) -> Result<Elf<'a>, Unknown> {
        let header = file.bytes(0, 64.min(file.size))?;
        let encoding = match header.get(4..6) {
            Some([class @ (1 | 2), order @ (1 | 2)]) => {
                Encoding { is_wide: *class == 2, is_big_endian: *order == 2 }
            }
            _ => return Err(Unknown::NoProgram),
        };
        let (place, length_at) = (encoding.word(&header, 28, 32), if encoding.is_wide { 54 } else { 42 });
        let length = encoding.number(&header, length_at, 2);
        let count = encoding.number(&header, length_at + 2, 2);
        let least = if encoding.is_wide { 56 } else { 32 };
        let all = length.saturating_mul(count);
        if length < least || all > MOST_HEADERS {
            return Err(Unknown::NoProgram);
        }
        let headers = file.bytes(place, all)?;
        // It is at least 32 and below 65,536.
        let segments = headers.chunks_exact(length as usize).map(|header| Segment {
            kind: encoding.number(header, 0, 4),
            flags: encoding.number(header, if encoding.is_wide { 4 } else { 24 }, 4),
            offset: encoding.word(header, 4, 8),
            address: encoding.word(header, 8, 16),
            length: encoding.word(header, 16, 32),
        });
        Ok(Elf { segments: segments.collect(), encoding, file })
    }

    fn of_kind(&self, kind: u64) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.kind == kind)
    }

    /// Where in the file what is loaded at that address is.
    fn place_of(&self, address: u64) -> Option<u64> {
        self.of_kind(PT_LOAD).find_map(|segment| {
            let within = address.checked_sub(segment.address).filter(|within| *within < segment.length)?;
            segment.offset.checked_add(within)
        })
    }

    fn needs(&self) -> Result<Needs, Unknown> {
        let mut needs = Needs::default();
        if let Some(segment) = self.of_kind(PT_INTERP).next() {
            needs.interpreters.push(self.file.text(segment.offset)?);
        }
        let written = self.of_kind(PT_LOAD).filter(|segment| segment.flags & PF_W != 0 && segment.length > 0);
        needs.relocated = written
            .filter_map(|segment| Some(segment.offset..segment.offset.checked_add(segment.length)?))
            .filter(|range| range.end <= self.file.size)
            .collect();
        let Some(dynamic) = self.of_kind(PT_DYNAMIC).next() else { return Ok(needs) };
        let entries = self.dynamic(dynamic)?;
        let value_of = |tag| entries.iter().find(|(other, _)| *other == tag).map(|(_, value)| *value);
        let Some(strings) = value_of(DT_STRTAB).and_then(|address| self.place_of(address)) else {
            return Ok(needs);
        };
        let text = |offset: u64| self.file.text(strings.checked_add(offset).ok_or(Unknown::NoProgram)?);
        for (_, name) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED).take(MOST_LIBRARIES) {
            needs.libraries.push(text(*name)?);
        }
        // Where both are, the older one counts for nothing.
        if let Some(path) = value_of(DT_RUNPATH).or_else(|| value_of(DT_RPATH)) {
            let path = text(path)?;
            let directories = path.split(|byte| *byte == b':').filter(|directory| !directory.is_empty());
            needs.search = directories.map(<[u8]>::to_vec).collect();
        }
        Ok(needs)
    }

    /// The entries of the dynamic section up to the one that ends it: tag and value.
    fn dynamic(&self, segment: &Segment) -> Result<Vec<(u64, u64)>, Unknown> {
        if segment.length > MOST_DYNAMIC {
            return Err(Unknown::NoProgram);
        }
        let bytes = self.file.bytes(segment.offset, segment.length)?;
        let length = if self.encoding.is_wide { 16 } else { 8 };
        let entry = |bytes: &[u8]| (self.encoding.word(bytes, 0, 0), self.encoding.word(bytes, 4, 8));
        Ok(bytes.chunks_exact(length).map(entry).take_while(|(tag, _)| *tag != 0).collect())
    }
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
