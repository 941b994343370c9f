//! Files under the budget of the connections: 40 tasks open a file each, and no more than 8 are open at a time.
//! A task that needs two at once asks for both at once.
//! Run it with `cargo run --example files`.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fdpool::{Budget, Held};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;

const FILES: usize = 40;
const SLOTS: usize = 8;

/// A file that holds its slot: closed first, the slot given back then, wherever it is dropped. Not so one of tokio's
/// that is dropped while it reads or writes, as by a timeout: a thread does that, and closes the file after it.
async fn create(budget: &Budget, path: &Path) -> Result<Held<File>, Failure> {
    let slot = budget.acquire().await?; // before the file is opened, so that none is open uncounted
    Ok(slot.hold(File::create(path).await?))
}

async fn copy(budget: &Budget, from: &Path, to: &Path) -> Result<u64, Failure> {
    // With one after the other, eight such tasks could hold one each and wait for the second for ever.
    let mut slot = budget.acquire_many(2).await?;
    let second = slot.split(1).ok_or("a slot of weight 2")?;
    let mut from = slot.hold(File::open(from).await?);
    let mut to = second.hold(File::create(to).await?);
    let bytes = tokio::io::copy(&mut from, &mut to).await?;
    to.flush().await?;
    Ok(bytes)
}

/// A directory that goes with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("fdpool-files-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn file(&self, n: usize) -> PathBuf {
        self.0.join(n.to_string())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let scratch = Scratch::new()?;
    let budget = Budget::new(SLOTS);
    let most = Arc::new(AtomicUsize::new(0));

    let mut tasks = JoinSet::new();
    for n in 0..FILES {
        let (budget, path, most) = (budget.clone(), scratch.file(n), Arc::clone(&most));
        tasks.spawn(async move {
            let mut file = create(&budget, &path).await?;
            most.fetch_max(budget.stats().held, Ordering::Relaxed);
            file.write_all(format!("file {n}").as_bytes()).await?;
            file.flush().await?;
            Result::<_, Failure>::Ok(())
        });
    }
    while let Some(written) = tasks.join_next().await {
        written??;
    }
    println!("{FILES} files written, at most {} of {SLOTS} slots held", most.load(Ordering::Relaxed));
    assert!((1..=SLOTS).contains(&most.load(Ordering::Relaxed)));

    let mut copies = JoinSet::new();
    for n in 0..FILES {
        let (budget, from, to) = (budget.clone(), scratch.file(n), scratch.file(FILES + n));
        copies.spawn(async move { copy(&budget, &from, &to).await });
    }
    let mut bytes = 0;
    while let Some(copied) = copies.join_next().await {
        bytes += copied??;
    }
    let mut text = String::new();
    let slot = budget.acquire().await?;
    slot.hold(File::open(scratch.file(FILES + 7)).await?).read_to_string(&mut text).await?;
    println!("{FILES} files copied, {bytes} bytes; {} waits in all", budget.stats().waits);
    assert_eq!(text, "file 7");
    assert_eq!(budget.stats().held, 0);
    Ok(())
}
