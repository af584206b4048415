//! The flatbuffer of a SOCI zTOC (`layer/soci/`): of any bytes, what is read is written and read again as the same, and what it says of
//! its layer holds together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peelfs::layer::soci::ztoc::Ztoc;
use peelfs_fuzz::{seeds, soci};

fuzz_target!(init: seeds::plant(seeds::ztocs), |bytes: &[u8]| {
    if let Ok(ztoc) = Ztoc::read(bytes) {
        soci::check(ztoc);
    }
});
