//! deadpool and connections of our own under one budget, with the process to themselves: there is one test, which
//! counts all descriptors that are open. The servers are other processes.

#[path = "support/descriptors.rs"]
mod descriptors;
#[path = "support/servers.rs"]
mod servers;
#[allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]
#[path = "support/sweep.rs"]
mod sweep;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use deadpool::managed::Hook;
use deadpool_redis::redis::{AsyncCommands, AsyncConnectionConfig};
use descriptors::{SoftLimit, open};
use fdpool::dial::Tcp;
use fdpool::interop::deadpool::{Place, Pool, builder};
use fdpool::{Budget, ConnResource};
use servers::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Manager = deadpool_redis::Manager;

/// The sweep's fleet of echo servers. It ends when its stdin does.
struct Fleet {
    child: Child,
    addresses: Vec<String>,
}

impl Fleet {
    fn start(size: usize) -> Self {
        let mut command = sweep::command(&["--serve-fleet", &size.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addresses: Vec<_> = lines.take(size).map(Result::unwrap).collect();
        let fleet = Self { child, addresses };
        assert_eq!(fleet.addresses.len(), size, "all of them listen");
        fleet
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The most descriptors that were open at a time, looked for all the while.
struct Peak {
    ended: Arc<AtomicBool>,
    looking: std::thread::JoinHandle<usize>,
}

impl Peak {
    fn watch() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let looking = std::thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                let mut most = 0;
                while !ended.load(Ordering::SeqCst) {
                    most = most.max(open());
                    std::thread::yield_now();
                }
                most
            }
        });
        Self { ended, looking }
    }

    fn end(self) -> usize {
        self.ended.store(true, Ordering::SeqCst);
        self.looking.join().unwrap()
    }
}

const FLEET: usize = 0;
const REDIS: usize = 1;

/// What both sides have called, until it is enough for a round. Neither stops before the other has had its share, so
/// all that a side gets, it gets while the other presses.
#[derive(Default)]
struct Round([AtomicUsize; 2]);

impl Round {
    const CALLS: usize = 1_000;
    const SHARE: usize = 100;

    fn goes_on(&self) -> bool {
        let [fleet, redis] = self.calls();
        fleet + redis < Self::CALLS || fleet.min(redis) < Self::SHARE
    }

    fn count(&self, side: usize) {
        self.0[side].fetch_add(1, Ordering::SeqCst);
    }

    fn calls(&self) -> [usize; 2] {
        self.0.each_ref().map(|calls| calls.load(Ordering::SeqCst))
    }
}

async fn in_time<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), call).await.expect("nobody waits for ever")
}

async fn call_the_fleet(fleet: Arc<[ConnResource]>, task: usize, round: Arc<Round>) {
    let mut n = task * 37;
    while round.goes_on() {
        n = (n * 31 + 7) % fleet.len();
        let mut conn = in_time(fleet[n].get()).await.unwrap();
        let question = (n as u64).to_be_bytes();
        conn.write_all(&question).await.unwrap();
        let mut answer = [0xFF; 8];
        in_time(conn.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, question);
        conn.put();
        round.count(FLEET);
    }
}

async fn call_redis(pool: Pool<Manager>, round: Arc<Round>) {
    while round.goes_on() {
        let mut conn = in_time(pool.get()).await.unwrap();
        let _: usize = in_time(conn.incr("calls", 1)).await.unwrap();
        drop(conn);
        round.count(REDIS);
    }
}

/// 300 addresses of our own and deadpool-redis press each other for 20 slots: 10,000 calls in all.
#[test]
fn a_fleet_and_deadpool_redis_press_each_other() {
    const ADDRESSES: usize = 300;
    const SLOTS: usize = 20;
    const OBJECTS: usize = 8;
    /// redis's sockets belong to tasks, which close them when they run next after their object's slot has gone. Until
    /// then they are nobody's: room for twice what the pool has of them.
    const ROOM: usize = 2 * OBJECTS;
    const TASKS: usize = 16;

    let Some(redis) = Server::redis() else { return };
    let servers = Fleet::start(ADDRESSES);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let at_first = open();
    let _soft = SoftLimit::leaving((SLOTS + ROOM) as u64);
    let budget = Budget::builder().reserve(ROOM).build().unwrap();
    assert_eq!(budget.limit(), SLOTS);
    let peak = Peak::watch();

    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let counting = Hook::sync_fn(move |_: &mut Place<Manager>, _| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    // Half a second for an answer and one for a connection, as by default, may pass while the machine is busy.
    let patient = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let manager = Manager::new_with_config(format!("redis://{}/", redis.address), patient).unwrap();
    let pool: Pool<Manager> =
        builder(manager, &budget).max_size(OBJECTS).post_create(counting).build().unwrap();
    let fleet: Arc<[_]> = servers
        .addresses
        .iter()
        .map(|address| ConnResource::builder(address, Tcp::default()).budget(&budget).build())
        .collect();
    let (rounds, told_by_redis, stats): (Vec<_>, usize, _) = runtime.block_on(async {
        let mut rounds = Vec::new();
        for _ in 0..10 {
            let (round, mut tasks) = (Arc::new(Round::default()), tokio::task::JoinSet::new());
            for task in 0..TASKS {
                tasks.spawn(call_the_fleet(Arc::clone(&fleet), task, Arc::clone(&round)));
                tasks.spawn(call_redis(pool.clone(), Arc::clone(&round)));
            }
            while let Some(ended) = tasks.join_next().await {
                ended.expect("all calls succeed");
            }
            rounds.push(round.calls());
        }
        let told = pool.get().await.unwrap().get("calls").await.unwrap();
        let stats = budget.stats();
        drop((fleet, pool));
        in_time(async {
            while open() > at_first {
                tokio::task::yield_now().await;
            }
        })
        .await;
        (rounds, told, stats)
    });

    let most = peak.end() - at_first;
    let made = made.load(Ordering::SeqCst);
    eprintln!(
        "{most} descriptors above the {at_first} at first: {SLOTS} slots and {}",
        most.saturating_sub(SLOTS)
    );
    eprintln!("calls of the fleet and of redis: {rounds:?}; {made} objects made; {stats:?}");
    assert!(most <= SLOTS + ROOM && stats.emfile == 0, "{stats:?}");
    let ended = |side: usize| rounds.iter().map(|calls| calls[side]).sum::<usize>();
    assert!(ended(FLEET) + ended(REDIS) >= 10_000);
    assert_eq!(told_by_redis, ended(REDIS));
    assert!(stats.evicted > 0 && stats.dial_failures == 0, "{stats:?}");
    assert!(made > OBJECTS, "objects went for connections: {made} were made");
}
