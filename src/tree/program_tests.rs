//! Promises: what a program says that it needs is told, in both classes and both byte orders; parts that are missing are asked for; and whatever a
//! file says, it is no more than an answer.

use super::*;

/// An ELF file of a class and byte order: a header, four program headers, the interpreter, the dynamic section, and the strings.
struct Made {
    is_wide: bool,
    is_big_endian: bool,
    bytes: Vec<u8>,
}

/// What is loaded is so much further in memory than in the file.
const SHIFT: u64 = 0x40_0000;
const STRINGS: &[u8] = b"\0libc.so.6\0libm.so.6\0$ORIGIN/../lib:/opt/lib\0/old\0";
const INTERPRETER: &[u8] = b"/lib64/ld-linux.so.2\0";

impl Made {
    fn new(is_wide: bool, is_big_endian: bool) -> Made {
        let mut made = Made { is_wide, is_big_endian, bytes: Vec::new() };
        let (header, entry, dynamic_entry) = if is_wide { (64, 56, 16) } else { (52, 32, 8) };
        let interpreter = header + 4 * entry;
        let dynamic = interpreter + INTERPRETER.len() as u64;
        let entries = [
            (DT_NEEDED, 1),
            (DT_STRTAB, 0),
            (DT_NEEDED, 11),
            (DT_RPATH, 45),
            (DT_RUNPATH, 21),
            (0, 0),
            // Behind the end.
            (DT_NEEDED, 45),
        ];
        let strings = dynamic + dynamic_entry * entries.len() as u64;
        let size = strings + STRINGS.len() as u64;
        made.bytes.extend_from_slice(b"\x7fELF");
        made.bytes.extend([1 + u8::from(is_wide), 1 + u8::from(is_big_endian)]);
        made.bytes.resize(if is_wide { 32 } else { 28 }, 0);
        made.word(header);
        made.bytes.resize(if is_wide { 54 } else { 42 }, 0);
        made.number(entry, 2);
        made.number(4, 2);
        made.bytes.resize(header as usize, 0);
        made.segment(PT_LOAD, 0, 0, size);
        made.segment(PT_LOAD, PF_W, dynamic, strings - dynamic);
        made.segment(PT_INTERP, 0, interpreter, INTERPRETER.len() as u64);
        made.segment(PT_DYNAMIC, 0, dynamic, strings - dynamic);
        made.bytes.extend_from_slice(INTERPRETER);
        for (tag, value) in entries {
            made.word(tag);
            made.word(if tag == DT_STRTAB { strings + SHIFT } else { value });
        }
        made.bytes.extend_from_slice(STRINGS);
        made
    }

    fn number(&mut self, number: u64, length: usize) {
        let mut bytes = number.to_le_bytes()[..length].to_vec();
        if self.is_big_endian {
            bytes.reverse();
        }
        self.bytes.extend(bytes);
    }

    fn word(&mut self, number: u64) {
        self.number(number, if self.is_wide { 8 } else { 4 });
    }

    fn segment(&mut self, kind: u64, flags: u64, offset: u64, length: u64) {
        self.number(kind, 4);
        if self.is_wide {
            self.number(flags, 4);
        }
        for word in [offset, offset + SHIFT, offset + SHIFT, length, length] {
            self.word(word);
        }
        if !self.is_wide {
            self.number(flags, 4);
        }
        self.word(4096);
    }

    fn expected(&self) -> Needs {
        let dynamic = (self.bytes.len() - STRINGS.len()) as u64;
        let length = if self.is_wide { 7 * 16 } else { 7 * 8 };
        Needs {
            interpreters: vec![b"/lib64/ld-linux.so.2".to_vec()],
            libraries: vec![b"libc.so.6".to_vec(), b"libm.so.6".to_vec()],
            search: vec![b"$ORIGIN/../lib".to_vec(), b"/opt/lib".to_vec()],
            relocated: std::iter::once(dynamic - length..dynamic).collect(),
        }
    }
}

fn all() -> [Made; 4] {
    [(true, false), (true, true), (false, false), (false, true)]
        .map(|(is_wide, is_big_endian)| Made::new(is_wide, is_big_endian))
}

fn needs(bytes: &[u8]) -> Result<Needs, Unknown> {
    needs_of(bytes.len() as u64, |range| Some(bytes[range.start as usize..range.end as usize].to_vec()))
}

#[test]
fn an_elf_file_tells_its_interpreter_its_libraries_and_where_they_are() {
    for made in all() {
        assert!(is_program(&made.bytes));
        assert_eq!(needs(&made.bytes), Ok(made.expected()), "{} {}", made.is_wide, made.is_big_endian);
    }
}

#[test]
fn a_real_program_needs_a_loader_and_a_c_library() {
    let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let needs = needs(&bytes).unwrap();
    let [interpreter] = &needs.interpreters[..] else { panic!("{needs:?}") };
    assert!(std::fs::exists(String::from_utf8(interpreter.clone()).unwrap()).unwrap());
    assert!(needs.libraries.iter().any(|library| library.starts_with(b"libc.")), "{needs:?}");
    assert!(!needs.relocated.is_empty());
}

#[test]
fn what_is_missing_is_asked_for_and_nothing_else_is_looked_at() {
    for made in all() {
        // What is not here yet, in pieces of 16 bytes.
        let mut here = vec![false; made.bytes.len().div_ceil(16)];
        let pieces = |range: &Range<u64>| range.start as usize / 16..(range.end as usize).div_ceil(16);
        let mut asked = 0;
        loop {
            let read = |range: Range<u64>| {
                let is_here = here[pieces(&range)].iter().all(|piece| *piece);
                is_here.then(|| made.bytes[range.start as usize..range.end as usize].to_vec())
            };
            match needs_of(made.bytes.len() as u64, read) {
                Ok(needs) => break assert_eq!(needs, made.expected()),
                Err(Unknown::Missing(range)) => here[pieces(&range)].fill(true),
                Err(Unknown::NoProgram) => panic!("it is one"),
            }
            asked += 1;
        }
        // Header, program headers, interpreter, dynamic section, strings: each at most once.
        assert!((1..=6).contains(&asked), "{asked}");
    }
}

#[test]
fn a_script_tells_what_runs_it() {
    for (script, expected) in [
        ("#!/bin/sh\necho", &["/bin/sh"][..]),
        ("#! /usr/bin/python3 -u\n", &["/usr/bin/python3"]),
        ("#!/usr/bin/env python3\nimport", &["/usr/bin/env", "python3"]),
        ("#!/usr/bin/env -S A=b node --flag x", &["/usr/bin/env", "node"]),
        ("#!\n/bin/sh", &[]),
        ("#!", &[]),
    ] {
        let found = if script.len() < MAGIC_LENGTH { Ok(Needs::default()) } else { needs(script.as_bytes()) };
        let interpreters: Vec<_> = expected.iter().map(|path| path.as_bytes().to_vec()).collect();
        assert_eq!(found, Ok(Needs { interpreters, ..Needs::default() }), "{script}");
    }
    for nothing in [&b""[..], b"\x7fEL", b"plain text", b"\x7fELF", b"\x7fELF\x02\x01"] {
        assert_eq!(needs(nothing), Err(Unknown::NoProgram), "{nothing:?}");
    }
}

/// Whatever a byte of it is changed to, and wherever it is cut, there is an answer, and no more is read than there is.
#[test]
fn a_damaged_program_is_no_more_than_one_that_tells_less() {
    for made in all() {
        let size = made.bytes.len();
        for place in 0..size {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = made.bytes.clone();
                bytes[place] = value;
                let mut looked_at = 0;
                let looked = std::cell::RefCell::new(&mut looked_at);
                let found = needs_of(size as u64, |range| {
                    **looked.borrow_mut() += range.end - range.start;
                    Some(bytes[range.start as usize..range.end as usize].to_vec())
                });
                assert!(!matches!(found, Err(Unknown::Missing(_))));
                assert!(looked_at < 100 * size as u64, "{place}");
            }
            let _ = needs(&made.bytes[..place]);
        }
    }
}
