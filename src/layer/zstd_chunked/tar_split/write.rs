//! Writes tar-split data as the archive goes by.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use super::{FILE, SEGMENT};

/// A line of the JSON, as Go writes it: what is empty is left out, but for the payload.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    payload: Option<&'a str>,
    position: u64,
}

/// Lines of JSON that are taken from it as they come.
#[derive(Default)]
pub struct TarSplitWriter {
    json: Vec<u8>,
    position: u64,
    /// Bytes that belong to the next segment.
    segment: Vec<u8>,
    base64: String,
}

impl TarSplitWriter {
    /// Bytes of headers, padding or the end.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.segment.extend_from_slice(bytes);
    }

    /// The bytes before were the headers of that entry, whose data come next: `size` bytes with that checksum, or none. The segment
    /// ends here for each entry: containers/storage finds headers at beginnings of segments alone, behind padding.
    pub fn entry(&mut self, name: &str, size: u64, crc64: u64) {
        self.end_segment();
        let checksum = BASE64.encode(crc64.to_be_bytes());
        let has_data = size > 0;
        self.line(FILE, Some(name), has_data.then_some(size), has_data.then_some(&checksum));
    }

    /// Ends the segment.
    pub fn end_segment(&mut self) {
        if self.segment.is_empty() {
            return;
        }
        let mut base64 = std::mem::take(&mut self.base64);
        base64.clear();
        BASE64.encode_string(&self.segment, &mut base64);
        self.segment.clear();
        self.line(SEGMENT, None, None, Some(&base64));
        self.base64 = base64;
    }

    /// The JSON that was made since it was last taken.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.json)
    }

    fn line(&mut self, kind: i64, name: Option<&str>, size: Option<u64>, payload: Option<&str>) {
        let name = name.filter(|name| !name.is_empty());
        let line = Line { kind, name, size, payload, position: self.position };
        // Strings and numbers alone, written to memory: there is nothing that could fail.
        if serde_json::to_writer(&mut self.json, &line).is_ok() {
            self.json.push(b'\n');
        }
        self.position += 1;
    }
}
