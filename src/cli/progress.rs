//! Progress of layers that are streamed or converted: bars on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use peelfs::containerd::pull as containerd;
use peelfs::convert;
use peelfs::fetch::extract;
use peelfs::fetch::index::{Event, Progress};
use peelfs::push;
use peelfs_registry::{Copied, Digest};

use super::output::{bytes, short};

/// Tells on standard error what happens to the layers.
pub fn to_terminal(quiet: bool) -> Progress {
    if quiet {
        return Arc::new(|_| {});
    }
    if !std::io::stderr().is_terminal() {
        return Arc::new(|event| match event {
            Event::StreamStarted(layer, size) => {
                eprintln!(
                    "{}: no usable table of contents; streaming {}",
                    short(layer.as_str()),
                    bytes(size)
                );
            }
            Event::StreamFinished(layer) => eprintln!("{}: whole and verified", short(layer.as_str())),
            Event::Indexed(_) | Event::Streamed(..) => {}
        });
    }
    let all = MultiProgress::new();
    let bars: Mutex<HashMap<Digest, ProgressBar>> = Mutex::default();
    Arc::new(move |event| {
        let mut bars = bars.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match event {
            Event::Indexed(_) => {}
            Event::StreamStarted(layer, size) => {
                let bar = all.add(ProgressBar::new(size).with_style(style()));
                bar.set_prefix(short(layer.as_str()));
                bars.insert(layer, bar);
            }
            Event::Streamed(layer, done) => {
                if let Some(bar) = bars.get(&layer) {
                    bar.set_position(done);
                }
            }
            Event::StreamFinished(layer) => {
                if let Some(bar) = bars.remove(&layer) {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

/// Tells on standard error what happens to layers that are extracted.
pub fn of_extraction(quiet: bool) -> extract::Progress {
    use extract::Event;
    if quiet {
        return Arc::new(|_| {});
    }
    if !std::io::stderr().is_terminal() {
        return Arc::new(|event| match event {
            Event::Started(layer, missing) => eprintln!("{}: {} missing", short(&layer), bytes(missing)),
            Event::Done(layer) => eprintln!("{}: here", short(&layer)),
            Event::Fetched(..) | Event::Proving(_) => {}
        });
    }
    let all = MultiProgress::new();
    let bars: Mutex<HashMap<Arc<str>, ProgressBar>> = Mutex::default();
    Arc::new(move |event| {
        let mut bars = bars.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match event {
            Event::Started(layer, missing) => {
                // Again, if another process had begun.
                let bar = bars
                    .entry(layer.clone())
                    .or_insert_with(|| all.add(ProgressBar::new(missing).with_style(style())));
                bar.reset();
                bar.set_length(missing);
                bar.set_prefix(short(&layer));
            }
            Event::Fetched(layer, done) => {
                if let Some(bar) = bars.get(&layer) {
                    bar.set_position(done);
                }
            }
            Event::Proving(layer) => {
                if let Some(bar) = bars.get(&layer) {
                    bar.set_position(bar.length().unwrap_or_default());
                    bar.set_prefix(format!("{} proved", short(&layer)));
                }
            }
            Event::Done(layer) => {
                if let Some(bar) = bars.remove(&layer) {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

/// Tells on standard error what happens to layers that are pulled into containerd.
pub fn of_containerd(quiet: bool) -> containerd::Progress {
    use containerd::{Event, Outcome};
    if quiet {
        return Arc::new(|_| {});
    }
    if !std::io::stderr().is_terminal() {
        return Arc::new(|event| match event {
            Event::Fetching(layer, size) => {
                eprintln!("{}: cannot be lazy; fetching {}", short(layer.as_str()), bytes(size));
            }
            Event::Done(layer, Outcome::Unpacked) => eprintln!("{}: unpacked", short(layer.as_str())),
            Event::Done(..) | Event::Fetched(..) | Event::Unpacking(_) => {}
        });
    }
    let all = MultiProgress::new();
    let bars: Mutex<HashMap<Digest, ProgressBar>> = Mutex::default();
    Arc::new(move |event| {
        let mut bars = bars.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match event {
            Event::Fetching(layer, size) => {
                let bar = all.add(ProgressBar::new(size).with_style(style()));
                bar.set_prefix(short(layer.as_str()));
                bars.insert(layer, bar);
            }
            Event::Fetched(layer, done) => {
                if let Some(bar) = bars.get(&layer) {
                    bar.set_position(done);
                }
            }
            Event::Unpacking(layer) => {
                if let Some(bar) = bars.get(&layer) {
                    bar.set_prefix(format!("{} unpacked", short(layer.as_str())));
                }
            }
            Event::Done(layer, _) => {
                if let Some(bar) = bars.remove(&layer) {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

/// Tells on standard error what happens to layers that are converted.
pub fn of_conversion(quiet: bool) -> convert::Progress {
    if quiet {
        return Arc::new(|_| {});
    }
    if !std::io::stderr().is_terminal() {
        return Arc::new(|event| {
            if let convert::Event::Done(layer, new) = event {
                eprintln!(
                    "{}: became {}, {}",
                    short(layer.as_str()),
                    short(new.digest.as_str()),
                    bytes(new.size)
                );
            }
        });
    }
    let all = MultiProgress::new();
    let bars: Mutex<HashMap<Digest, ProgressBar>> = Mutex::default();
    Arc::new(move |event| {
        let mut bars = bars.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match event {
            convert::Event::Reading(layer, size) => {
                let bar = all.add(ProgressBar::new(size).with_style(style()));
                bar.set_prefix(format!("{} read", short(layer.as_str())));
                bars.insert(layer, bar);
            }
            convert::Event::Writing(layer, size) => {
                if let Some(bar) = bars.get(&layer) {
                    bar.reset();
                    bar.set_length(size);
                    bar.set_prefix(format!("{} written", short(layer.as_str())));
                }
            }
            convert::Event::Read(layer, done) | convert::Event::Written(layer, done) => {
                if let Some(bar) = bars.get(&layer) {
                    bar.set_position(done);
                }
            }
            convert::Event::Done(layer, _) => {
                if let Some(bar) = bars.remove(&layer) {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

/// Tells on standard error what happens to layers that are indexed.
pub fn of_indexing(quiet: bool) -> convert::soci::Progress {
    use convert::soci::Event;
    if quiet {
        return Arc::new(|_| {});
    }
    if !std::io::stderr().is_terminal() {
        return Arc::new(|event| {
            if let Event::Done(layer, Some(size)) = event {
                eprintln!("{}: indexed in {}", short(layer.as_str()), bytes(size));
            }
        });
    }
    let all = MultiProgress::new();
    let bars: Mutex<HashMap<Digest, ProgressBar>> = Mutex::default();
    Arc::new(move |event| {
        let mut bars = bars.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match event {
            Event::Reading(layer, size) => {
                let bar = all.add(ProgressBar::new(size).with_style(style()));
                bar.set_prefix(short(layer.as_str()));
                bars.insert(layer, bar);
            }
            Event::Read(layer, done) => {
                if let Some(bar) = bars.get(&layer) {
                    bar.set_position(done);
                }
            }
            Event::Done(layer, _) => {
                if let Some(bar) = bars.remove(&layer) {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

/// Tells on standard error what happens to blobs that are pushed.
pub fn of_push(quiet: bool) -> push::Progress {
    use push::Event;
    if quiet {
        return Arc::new(|_| {});
    }
    if !std::io::stderr().is_terminal() {
        return Arc::new(|event| {
            if let Event::Done(blob, copied) = event {
                let how = match copied {
                    Copied::Present => "is there",
                    Copied::Mounted => "mounted from another repository",
                    Copied::Sent => "sent",
                };
                eprintln!("{}: {how}", short(blob.as_str()));
            }
        });
    }
    let all = MultiProgress::new();
    let bars: Mutex<HashMap<Digest, ProgressBar>> = Mutex::default();
    Arc::new(move |event| {
        let mut bars = bars.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match event {
            Event::Started(blob, size) => {
                let bar = all.add(ProgressBar::new(size).with_style(style()));
                bar.set_prefix(short(blob.as_str()));
                bars.insert(blob, bar);
            }
            Event::Sent(blob, done) => {
                if let Some(bar) = bars.get(&blob) {
                    bar.set_position(done);
                }
            }
            Event::Done(blob, _) => {
                if let Some(bar) = bars.remove(&blob) {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}  {bar:30}  {bytes} of {total_bytes}  {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
