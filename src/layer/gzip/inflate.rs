//! Raw deflate (RFC 1951) that can stop between two blocks and start there again. The only unsafe file of the layer formats: the
//! safe interfaces of zlib-rs tell neither where a block ends within a byte nor take the bits of one, zlib's C interface does.
//!
//! Why it is sound:
//! - The stream is initialised in [`Inflate::new`] and ended on drop, nowhere else; it lies in a box, so it never moves meanwhile.
//! - Pointers to input, output and dictionary are made from slices just before a call, with lengths that fit, and are not used by
//!   the library after the call returns: zlib keeps its own copy of the window.
//! - All allocations are the library's own, by Rust's global allocator, and belong to this stream alone: it may go to another thread.

use std::ffi::{c_int, c_uint};

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateGetDictionary,
    inflateInit2_, inflatePrime, inflateReset, inflateSetDictionary, z_stream, zlibVersion,
};

/// Bytes that deflate looks back: the largest distance (RFC 1951, section 3.2.5).
pub const WINDOW: usize = 32 << 10;

/// Window bits of a raw stream: negative says that neither a header nor a trailer surrounds it.
const RAW: c_int = -15;

/// Bits of `data_type` after a call (zlib's manual, on `Z_BLOCK`).
const UNUSED_BITS: c_int = 63;
const IN_LAST_BLOCK: c_int = 64;
const BETWEEN_BLOCKS: c_int = 128;

/// A decoder of one deflate stream after another.
pub(super) struct Inflate {
    stream: Box<z_stream>,
}

/// What one call of [`Inflate::run`] did.
pub(super) struct Step {
    pub consumed: usize,
    pub produced: usize,
    /// The stream ended with these bytes.
    pub is_end: bool,
}

// SAFETY: see the head of this file.
unsafe impl Send for Inflate {}

impl Inflate {
    /// At the beginning of a stream.
    ///
    /// # Panics
    /// If there is no memory for it, as any allocation does.
    pub fn new() -> Inflate {
        let mut stream = Box::new(z_stream::default());
        // SAFETY: `stream` is a valid default stream; version and size are those of the library that we are linked with.
        let result =
            unsafe { inflateInit2_(&mut *stream, RAW, zlibVersion(), size_of::<z_stream>() as c_int) };
        assert_eq!(result, Z_OK, "an inflater can be made");
        Inflate { stream }
    }

    /// Forgets all, for the beginning of another stream.
    pub fn reset(&mut self) {
        // SAFETY: the stream is initialised.
        let result = unsafe { inflateReset(&mut *self.stream) };
        debug_assert_eq!(result, Z_OK);
    }

    /// Makes `window` what went before, at most the last [`WINDOW`] bytes of it. Directly after [`new`](Self::new).
    pub fn set_window(&mut self, window: &[u8]) {
        let window = &window[window.len().saturating_sub(WINDOW)..];
        // SAFETY: the stream is initialised; the pointer is valid for the length, which is at most `WINDOW`.
        let result =
            unsafe { inflateSetDictionary(&mut *self.stream, window.as_ptr(), window.len() as c_uint) };
        debug_assert_eq!(result, Z_OK);
    }

    /// Puts the `bits` (0 to 7) topmost bits of `byte` before the input. Directly after [`new`](Self::new).
    pub fn prime(&mut self, bits: u8, byte: u8) {
        let value = c_int::from(byte) >> (8 - bits.min(7));
        // SAFETY: the stream is initialised.
        let result = unsafe { inflatePrime(&mut *self.stream, c_int::from(bits.min(7)), value) };
        debug_assert_eq!(result, Z_OK);
    }

    /// Decodes until the input or the room for output is used up, the stream ends, or, if `stops_at_blocks`, a block has ended.
    ///
    /// # Errors
    /// What is wrong with the stream, which cannot be decoded further.
    pub fn run(&mut self, input: &[u8], output: &mut [u8], stops_at_blocks: bool) -> Result<Step, String> {
        let stream = &mut *self.stream;
        // What exceeds the bound waits for the next call.
        let offered = c_uint::try_from(input.len()).unwrap_or(c_uint::MAX);
        let room = c_uint::try_from(output.len()).unwrap_or(c_uint::MAX);
        stream.next_in = input.as_ptr().cast_mut();
        stream.avail_in = offered;
        stream.next_out = output.as_mut_ptr();
        stream.avail_out = room;
        // SAFETY: the stream is initialised; both pointers are valid for the lengths beside them, and the input is only read.
        let result = unsafe { inflate(stream, if stops_at_blocks { Z_BLOCK } else { Z_NO_FLUSH }) };
        let (consumed, produced) = ((offered - stream.avail_in) as usize, (room - stream.avail_out) as usize);
        match result {
            Z_OK | Z_BUF_ERROR => Ok(Step { consumed, produced, is_end: false }),
            Z_STREAM_END => Ok(Step { consumed, produced, is_end: true }),
            _ if stream.msg.is_null() => Err(format!("zlib error {result}")),
            _ => {
                // SAFETY: a message is one of the library's constants and ends with a NUL byte.
                let message = unsafe { std::ffi::CStr::from_ptr(stream.msg) };
                Err(message.to_string_lossy().into_owned())
            }
        }
    }

    /// If the last call stopped between two blocks of a stream: how many bits were taken from the input that belong to the next.
    pub fn between_blocks(&self) -> Option<usize> {
        let state = self.stream.data_type;
        (state & BETWEEN_BLOCKS != 0 && state & IN_LAST_BLOCK == 0).then_some((state & UNUSED_BITS) as usize)
    }

    /// The last bytes that were decoded, [`WINDOW`] of them unless the stream has fewer yet.
    pub fn window(&self) -> Vec<u8> {
        let mut window = vec![0; WINDOW];
        let mut length: c_uint = 0;
        // SAFETY: the stream is initialised; the library writes at most `WINDOW` bytes, as many as the window bits say.
        let result = unsafe { inflateGetDictionary(&*self.stream, window.as_mut_ptr(), &mut length) };
        debug_assert_eq!(result, Z_OK);
        window.truncate(length as usize);
        window
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream is initialised, and nobody uses it any more.
        unsafe { inflateEnd(&mut *self.stream) };
    }
}
