//! `discard STORE`: discards all bytes of all layers in a store that can be fetched again, as a store does that must make room. The
//! benchmark measures with it how a layer is read that was streamed once.

use std::error::Error;
use std::path::Path;

use peelfs::fetch::index::open_local;
use peelfs::store::Store;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: discard STORE")?;
    let store = Store::open(Path::new(&path))?;
    let mut discarded = 0;
    for algorithm in std::fs::read_dir(store.path().join("layers"))? {
        let algorithm = algorithm?;
        for layer in std::fs::read_dir(algorithm.path())? {
            let (algorithm, layer) = (algorithm.file_name(), layer?.file_name());
            let digest = format!("{}:{}", algorithm.to_string_lossy(), layer.to_string_lossy()).parse()?;
            if let Some(content) = open_local(&store, &digest)? {
                discarded += content.evict(0..content.table().chunks().len())?;
            }
        }
    }
    println!("{discarded} chunks");
    Ok(())
}
