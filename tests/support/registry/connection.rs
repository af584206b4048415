//! One connection of the fake registry: HTTP/1.1 requests in, answers out, faults in between.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::respond::{Answer, answer};
use super::{Fault, Kind, Request, Shared};

/// Bytes of a body written at once.
const PIECE: usize = 64 * 1024;

/// Serves requests until the client, a fault or the end of the registry closes the connection.
pub(super) fn serve(stream: TcpStream, shared: &Shared, is_storage: bool) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Ok(Some((request, body))) = read_request(&mut reader, is_storage) {
        let goes_on = exchange(&mut writer, shared, is_storage, request, &body);
        shared.lock().answering -= 1;
        let Ok(true) = goes_on else { break };
    }
    let _ = writer.shutdown(std::net::Shutdown::Both);
}

/// Answers one request; true if the connection may go on.
fn exchange(
    writer: &mut TcpStream,
    shared: &Shared,
    is_storage: bool,
    request: Request,
    body: &[u8],
) -> io::Result<bool> {
    let (number, fault, answer) = {
        let mut state = shared.lock();
        let number = state.forgotten + state.requests.len();
        state.requests.push(request.clone());
        state.answering += 1;
        let fault = take_fault(&mut state.faults, &format!("{} {}", request.method, request.target));
        drop(state);
        match &fault {
            Some(Fault::Stall) => stall(shared),
            Some(Fault::StallWhole) if request.header("range").is_none() => stall(shared),
            _ => {}
        }
        let answer = answer(shared, is_storage, &request, body, fault.as_ref());
        (number, fault, answer)
    };
    let Some(answer) = answer else { return Ok(false) };
    record(shared, number, |request| request.status = answer.status);
    let is_head = request.method == "HEAD";
    send(writer, shared, number, &answer, fault.as_ref(), is_head)
}

fn take_fault(faults: &mut Vec<super::Rule>, request: &str) -> Option<Fault> {
    let position = faults.iter().position(|rule| request.contains(&rule.path))?;
    let rule = &mut faults[position];
    let fault = rule.fault.clone();
    if let Some(times) = &mut rule.times {
        *times -= 1;
        if *times == 0 {
            faults.remove(position);
        }
    }
    Some(fault)
}

/// Waits for the next release, or for the end.
fn stall(shared: &Shared) {
    let mut state = shared.lock();
    state.stalled += 1;
    let release = state.released;
    shared.changed.notify_all();
    let mut state = shared
        .changed
        .wait_while(state, |state| state.released == release && !state.down)
        .expect("no thread of the registry panics");
    state.stalled -= 1;
}

fn record(shared: &Shared, number: usize, change: impl FnOnce(&mut Request)) {
    let mut state = shared.lock();
    let place = number.checked_sub(state.forgotten);
    // The test may have forgotten it meanwhile.
    if let Some(request) = place.and_then(|place| state.requests.get_mut(place)) {
        change(request);
    }
}

fn send(
    writer: &mut TcpStream,
    shared: &Shared,
    number: usize,
    answer: &Answer,
    fault: Option<&Fault>,
    is_head: bool,
) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = answer.length();
    let chunked = matches!(fault, Some(Fault::ShortBody(_) | Fault::LongBody(_)));
    let announced = match fault {
        Some(Fault::WrongLength(more)) => length + more,
        _ => length,
    };
    match chunked {
        true => head.push_str("transfer-encoding: chunked\r\n\r\n"),
        false => head.push_str(&format!("content-length: {announced}\r\n\r\n")),
    }
    writer.write_all(head.as_bytes())?;
    if is_head {
        return Ok(true);
    }
    let stop = match fault {
        Some(Fault::CutAfter(bytes) | Fault::ShortBody(bytes)) => (*bytes).min(length),
        _ => length,
    };
    let mut pause = match fault {
        Some(Fault::StallAfter(bytes)) => Some((*bytes).min(length)),
        _ => None,
    };
    let mut sent = 0;
    while sent < stop {
        let until = pause.filter(|pause| *pause > sent).unwrap_or(stop);
        let size = PIECE.min((until - sent) as usize);
        let mut piece = answer.read(sent, size)?;
        if sent == 0 && matches!(fault, Some(Fault::WrongBytes)) {
            piece[0] ^= 1;
        }
        record(shared, number, |request| request.bytes += size as u64);
        write_piece(writer, &piece, chunked)?;
        sent += size as u64;
        if pause == Some(sent) {
            pause = None;
            stall(shared);
        }
    }
    if let Some(Fault::LongBody(more)) = fault {
        write_piece(writer, &vec![0; *more], chunked)?;
    }
    if chunked {
        writer.write_all(b"0\r\n\r\n")?;
    }
    Ok(!matches!(fault, Some(Fault::CutAfter(_) | Fault::WrongLength(_))))
}

fn write_piece(writer: &mut TcpStream, piece: &[u8], chunked: bool) -> io::Result<()> {
    if !chunked {
        return writer.write_all(piece);
    }
    write!(writer, "{:x}\r\n", piece.len())?;
    writer.write_all(piece)?;
    writer.write_all(b"\r\n")
}

/// Reads one request and its body; `None` when the client has closed the connection.
fn read_request(reader: &mut impl BufRead, is_storage: bool) -> io::Result<Option<(Request, Vec<u8>)>> {
    let Some(line) = read_line(reader)? else { return Ok(None) };
    let malformed = || io::Error::other("malformed request");
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1")) = (parts.next(), parts.next(), parts.next()) else {
        return Err(malformed());
    };
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?.ok_or_else(malformed)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let kind = match target {
        _ if is_storage => Kind::Storage,
        _ if target.starts_with("/token") => Kind::Token,
        _ if target.contains("/manifests/") => Kind::Manifest,
        _ if target.contains("/blobs/") => Kind::Blob,
        _ => Kind::Other,
    };
    let request =
        Request { method: method.to_owned(), target: target.to_owned(), headers, kind, status: 0, bytes: 0 };
    let length = request.header("content-length").map_or(Ok(0), str::parse).map_err(|_| malformed())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((request, body)))
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    if reader.by_ref().take(64 * 1024).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        404 => "Not Found",
        _ => "Whatever",
    }
}
