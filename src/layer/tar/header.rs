//! The fields of a header block, in each of the layouts that there are: v7, ustar, star, old GNU.

use super::{GNU_MAGIC, GNU_VERSION, Header, TarFault, USTAR_MAGIC, number, pax};

/// The checksum is the sum of all bytes of the block, its own field taken as spaces; some old writers summed signed bytes.
pub(super) fn check_sum(header: &Header) -> Result<(), TarFault> {
    let field = &header.as_ustar().cksum;
    let bytes = header.as_bytes();
    let spaces = 8 * i64::from(b' ');
    let unsigned = |bytes: &[u8]| bytes.iter().map(|byte| i64::from(*byte)).sum::<i64>();
    let signed = |bytes: &[u8]| bytes.iter().map(|byte| i64::from(*byte as i8)).sum::<i64>();
    let stated = number::header_number(field);
    let matches = stated == Some(unsigned(bytes) - unsigned(field) + spaces)
        || stated == Some(signed(bytes) - signed(field) + spaces);
    if matches { Ok(()) } else { Err(TarFault::Checksum) }
}

pub(super) fn is_gnu(header: &Header) -> bool {
    header.as_gnu().magic == *GNU_MAGIC && header.as_gnu().version == *GNU_VERSION
}

/// Name with its prefix, as the kind of header has it. The version field of ustar is not looked at: some writers leave it blank.
pub(super) fn path(header: &Header) -> Vec<u8> {
    let fields = header.as_ustar();
    let is_ustar = fields.magic == *USTAR_MAGIC;
    // star has two times where ustar has the end of the prefix.
    let is_star = is_ustar && header.as_bytes().ends_with(b"tar\0");
    let prefix = number::header_string(match (is_ustar, is_star) {
        (_, true) => &fields.prefix[..131],
        (true, false) => &fields.prefix,
        (false, _) if has_prefix_of_old_go(header) => &fields.prefix,
        (false, _) => &[],
    });
    let name = number::header_string(&fields.name);
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// Before 1.8, Go's writer put a prefix into GNU headers at times, where the format has times. There are images of that age.
fn has_prefix_of_old_go(header: &Header) -> bool {
    let fields = header.as_gnu();
    let is_time = |field: &[u8]| field[0] == 0 || number::header_number(field).is_some();
    is_gnu(header)
        && !(is_time(&fields.atime) && is_time(&fields.ctime))
        && number::header_string(&header.as_ustar().prefix).is_ascii()
}

pub(super) fn numeric_field(field: &'static str, bytes: &[u8]) -> Result<i64, TarFault> {
    number::header_number(bytes).ok_or_else(|| TarFault::Number { field, value: pax::excerpt(bytes) })
}

pub(super) fn size_field(bytes: &[u8]) -> Result<u64, TarFault> {
    let value = numeric_field("size", bytes)?;
    u64::try_from(value).map_err(|_| TarFault::OutOfRange { field: "size", value })
}

pub(super) fn owner(field: &'static str, record: Option<u64>, bytes: &[u8]) -> Result<u32, TarFault> {
    let value = match record {
        // PAX numbers are below 2⁶³.
        Some(value) => value as i64,
        None => numeric_field(field, bytes)?,
    };
    u32::try_from(value).map_err(|_| TarFault::OutOfRange { field, value })
}

pub(super) fn device_numbers(header: &Header) -> Result<(u32, u32), TarFault> {
    let fields = header.as_ustar();
    if fields.magic != *USTAR_MAGIC && !is_gnu(header) {
        return Ok((0, 0));
    }
    let number = |field, bytes: &[u8]| {
        let value = numeric_field(field, bytes)?;
        u32::try_from(value).map_err(|_| TarFault::OutOfRange { field, value })
    };
    Ok((number("devmajor", &fields.dev_major)?, number("devminor", &fields.dev_minor)?))
}
