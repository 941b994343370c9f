//! Ten thousand idle connections: how soon those are gone that their peers close, and what the quiet ones cost.

use std::io::Read;
use std::net::TcpStream as StdStream;
use std::time::{Duration, Instant};

use fdpool::dial::Tcp;
use fdpool::{Budget, ConnResource};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Builder;

use crate::report::{Report, table};

/// As many as the process may have descriptors for, both ends being in it.
const CONNECTIONS: usize = 9_500;

pub fn run(report: &mut Report, quiet: Duration) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let address = listener.local_addr().expect("bound");
        // A thread of its own: its end of the connections costs the runtime nothing.
        let accepting = std::thread::spawn(move || -> Vec<StdStream> {
            (0..CONNECTIONS).map(|_| listener.accept().expect("a connection").0).collect()
        });
        let budget = Budget::new(CONNECTIONS);
        let resources: Vec<ConnResource> = (0..CONNECTIONS)
            .map(|_| {
                ConnResource::builder(address, Tcp::default()).budget(&budget).idle_timeout(None).build()
            })
            .collect();
        for resource in &resources {
            resource.get().await.expect("a connection").put();
        }
        let mut peers = accepting.join().expect("does not panic");
        // All are watched by then.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(budget.stats().idle, CONNECTIONS);

        let (began, before) = (Instant::now(), processor_time());
        tokio::time::sleep(quiet).await;
        let share = (processor_time() - before).as_secs_f64() / began.elapsed().as_secs_f64();

        let gone = peers.split_off(CONNECTIONS / 2);
        let began = Instant::now();
        drop(gone);
        let closed = began.elapsed();
        while budget.stats().idle > CONNECTIONS / 2 {
            // Stats take time in proportion to the addresses: often, they would be what is measured.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut table = table(["", "found"]);
        table.add_row(["of a core, while all are quiet", &format!("{:.4} %", share * 100.0)]);
        let gone = CONNECTIONS - CONNECTIONS / 2;
        table.add_row([&format!("{gone} are closed by their peers within"), &format!("{closed:.1?}")]);
        table.add_row(["all of those are gone after", &format!("{:.1?}", began.elapsed())]);
        let notes =
            format!("{CONNECTIONS} idle connections, quiet for {quiet:?}; then half of them are closed.");
        report.section("upkeep", &notes, &table);
        assert_eq!(budget.stats().stale as usize, CONNECTIONS - CONNECTIONS / 2);
        drop(resources);
        for peer in &mut peers {
            assert_eq!(peer.read(&mut [0]).expect("an end"), 0);
        }
    });
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
