//! A pool of another kind under the same budget: log files that are kept open between two lines. When a
//! connection needs a slot, the budget asks it to close one that is not in use.
//! Run it with `cargo run --example foreign_pool`.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fdpool::dial::Tcp;
use fdpool::{Budget, ConnResource, Held, Reclaim, Registration};
use tokio::net::TcpListener;

/// Files nobody writes to now, oldest first.
#[derive(Debug, Default)]
struct Idle(Mutex<VecDeque<Held<File>>>);

impl Idle {
    fn files(&self) -> MutexGuard<'_, VecDeque<Held<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reclaim for Idle {
    fn idle(&self) -> usize {
        self.files().len()
    }

    fn reclaim_one(&self) -> bool {
        // The lock is released at the end of this line: a slot is never dropped under it.
        let oldest = self.files().pop_front();
        oldest.is_some()
    }
}

/// Open files to write log lines to.
#[derive(Debug)]
struct LogFiles {
    budget: Budget,
    idle: Arc<Idle>,
    registration: Registration,
}

impl LogFiles {
    fn new(budget: &Budget) -> Self {
        let idle = Arc::default();
        Self { budget: budget.clone(), registration: budget.register(&idle), idle }
    }

    async fn take(&self) -> Result<Held<File>, Box<dyn Error>> {
        let idle = self.idle.files().pop_back();
        match idle {
            Some(file) => Ok(file),
            None => Ok(self.budget.acquire().await?.hold(File::options().append(true).open("/dev/null")?)),
        }
    }

    fn give_back(&self, file: Held<File>) {
        self.idle.files().push_back(file);
        self.registration.became_idle(); // somebody may be waiting for it
    }
}

/// Accepts, and keeps what it accepted.
async fn serve(listener: TcpListener) -> io::Result<()> {
    let mut accepted = Vec::new();
    loop {
        accepted.push(listener.accept().await?);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let budget = Budget::new(4);
    let peer = ConnResource::builder(listener.local_addr()?, Tcp::default()).budget(&budget).build();
    tokio::spawn(serve(listener));
    let logs = LogFiles::new(&budget);

    let mut files = Vec::new();
    for n in 0..4 {
        let mut file = logs.take().await?;
        writeln!(file, "line {n}")?;
        files.push(file);
    }
    let refused = budget.acquire().immediate().await.err().ok_or("a fifth slot")?;
    println!("four files in use: {refused}");
    files.drain(..).for_each(|file| logs.give_back(file));
    println!("put aside: {} files idle, and the budget full", logs.idle.idle());

    let first = peer.get().await?;
    let second = peer.get().await?;
    println!("two connections: {} files idle", logs.idle.idle());
    assert_eq!((logs.idle.idle(), budget.stats().in_use), (2, 2));

    // Everything in use: a get waits, until a file is given back.
    let (third, fourth) = (logs.take().await?, logs.take().await?);
    let get = tokio::spawn(peer.get_owned());
    while budget.stats().waiting == 0 {
        tokio::task::yield_now().await;
    }
    logs.give_back(third);
    let conn = get.await??;
    println!("a file given back became a connection: {}", budget.explain());
    assert_eq!((logs.idle.idle(), budget.stats().in_use, budget.stats().held), (0, 3, 1));

    logs.give_back(fourth);
    [first, second, conn].into_iter().for_each(|conn| conn.put());
    Ok(())
}
