//! `peel tree REF`

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use peelfs::mount::local_tree;
use peelfs::store::Store;
use peelfs::table::format::InodeRecord;
use peelfs::tree::paths::walk;
use peelfs::tree::serve::MergedTree;
use serde::Serialize;

use super::failure::NotFound;
use super::known::KnownImage;
use super::output;

/// List the files of an image: their size, and where their bytes are
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    image: KnownImage,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct FileLine<'a> {
    path: &'a str,
    /// Given if the path is not UTF-8, and `path` only resembles it: its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<&'a [u8]>,
    r#type: &'static str,
    /// Permission bits, octal.
    mode: String,
    uid: u32,
    gid: u32,
    /// Bytes of a regular file, or of a symlink's target.
    size: u64,
    /// Bytes of the content that are here.
    present_bytes: u64,
    /// `local`, `partial`, `remote`, or nothing if there is no content.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'static str>,
    /// The layer that holds the content, 1 is the lowest.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<u16>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Store::open(store)?;
    let image = arguments.image.find(&store)?;
    let name = arguments.image.reference.to_string();
    let tree = local_tree(&store, &name, &image)?.ok_or_else(|| {
        NotFound(format!("not all layers of {name} are in the store; `peel mount` brings them"))
    })?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match list(&tree, &mut out, arguments.json).and_then(|()| out.flush()) {
        // `peel tree | head`
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a line for each name, in the order of the paths.
fn list(tree: &MergedTree, out: &mut impl Write, json: bool) -> std::io::Result<()> {
    let table = tree.table();
    if !json {
        writeln!(out, "{:<10} {:>11} {:<8} {:>5}  PATH", "MODE", "SIZE", "BYTES", "LAYER")?;
    }
    line(tree, &table.inodes()[0], b"/", out, json)?;
    let mut absolute = Vec::new();
    walk(table, |path, _, inode| {
        absolute.clear();
        absolute.push(b'/');
        absolute.extend_from_slice(path);
        line(tree, inode, &absolute, out, json)
    })
}

fn line(
    tree: &MergedTree,
    inode: &InodeRecord,
    path: &[u8],
    out: &mut impl Write,
    json: bool,
) -> std::io::Result<()> {
    let is_file = inode.mode.get() & libc::S_IFMT == libc::S_IFREG;
    let (data, present) = if is_file { content(tree, inode) } else { (0, 0) };
    let where_bytes_are = match present {
        _ if data == 0 => None,
        0 => Some("remote"),
        all if all == data => Some("local"),
        _ => Some("partial"),
    };
    let text = String::from_utf8_lossy(path);
    if !json {
        let size = if is_file { inode.size.get().to_string() } else { String::new() };
        let layer =
            if where_bytes_are.is_some() { (inode.layer.get() + 1).to_string() } else { String::new() };
        let mode = mode_text(inode.mode.get());
        let place = where_bytes_are.unwrap_or_default();
        let shown: String =
            text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
        return writeln!(out, "{mode:<10} {size:>11} {place:<8} {layer:>5}  {shown}");
    }
    let line = FileLine {
        path: &text,
        path_bytes: std::str::from_utf8(path).is_err().then_some(path),
        r#type: output::kind(inode.mode.get()).1,
        mode: format!("{:04o}", inode.mode.get() & 0o7777),
        uid: inode.uid.get(),
        gid: inode.gid.get(),
        size: inode.size.get(),
        present_bytes: present,
        content: where_bytes_are,
        layer: where_bytes_are.map(|_| inode.layer.get() + 1),
    };
    serde_json::to_writer(&mut *out, &line)?;
    writeln!(out)
}

/// Bytes of a file that are not holes, and how many of them are here.
fn content(tree: &MergedTree, inode: &InodeRecord) -> (u64, u64) {
    let Some(layer) = tree.layer(inode) else { return (0, 0) };
    tree.decoded_ranges(inode).into_iter().fold((0, 0), |(data, present), range| {
        (data + (range.end - range.start), present + layer.present_bytes(range))
    })
}

/// `-rwsr-xr-x`, as `ls -l` writes it.
fn mode_text(mode: u32) -> String {
    let mut text = String::from(output::kind(mode).0);
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn modes_are_written_as_ls_does() {
        for (mode, expected) in [
            (libc::S_IFREG | 0o4755, "-rwsr-xr-x"),
            (libc::S_IFDIR | 0o1777, "drwxrwxrwt"),
            (libc::S_IFREG | 0o2644, "-rw-r-Sr--"),
            (libc::S_IFLNK | 0o777, "lrwxrwxrwx"),
        ] {
            assert_eq!(super::mode_text(mode), expected);
        }
    }
}
