//! A day of virtual time: what expiry, jitter, stocks and back-off come to in the long run.

#![allow(clippy::disallowed_methods, reason = "the paused clock is asked what time it is")]

mod support;

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fdpool::dial::{CheckContext, from_fn};
use fdpool::{Address, Budget, ConnResource, DialContext, Fitness, GetError, Phase};
use support::assert_at_rest;
use tokio::time::{Instant, sleep};

const HOUR: Duration = Duration::from_secs(3600);
const OUTAGE: Duration = Duration::from_secs(120);

/// A peer that is down for the first two minutes of each hour but the first. Its connections know when they were born,
/// and tell how old they became.
#[derive(Default)]
struct Peer {
    dials: Mutex<Vec<Instant>>,
    ages: Mutex<Vec<Duration>>,
}

struct Dialled {
    peer: Arc<Peer>,
    born: Instant,
}

impl Drop for Dialled {
    fn drop(&mut self) {
        self.peer.ages.lock().unwrap().push(self.born.elapsed());
    }
}

fn is_down(since_start: Duration) -> bool {
    since_start >= HOUR && since_start.as_secs() % HOUR.as_secs() < OUTAGE.as_secs()
}

fn dialer(peer: &Arc<Peer>, start: Instant) -> impl fdpool::Dial<Conn = Dialled> + use<> {
    let peer = Arc::clone(peer);
    from_fn(
        move |_: &Address, _: &DialContext| {
            let peer = Arc::clone(&peer);
            async move {
                sleep(Duration::from_millis(20)).await;
                peer.dials.lock().unwrap().push(Instant::now());
                match is_down(start.elapsed()) {
                    true => Err(ErrorKind::ConnectionRefused.into()),
                    false => Ok(Dialled { peer: Arc::clone(&peer), born: Instant::now() }),
                }
            }
        },
        |_: &mut Dialled, _: &CheckContext| Fitness::Fit,
    )
}

#[tokio::test(start_paused = true)]
async fn a_day_goes_by_as_documented() {
    let (start, budget) = (Instant::now(), Budget::new(50));
    let [rare, busy, stocked] = [(); 3].map(|()| Arc::new(Peer::default()));
    let build =
        |name: &str, peer: &Arc<Peer>| ConnResource::builder(name, dialer(peer, start)).budget(&budget);
    let defaults = [build("rare", &rare).build(), build("busy", &busy).build()];
    let stock = build("stocked", &stocked).min_idle(4).max_lifetime(Duration::from_secs(600)).build();
    let lifetime = Duration::from_secs(30 * 60);

    let (mut failed, mut refused_unasked) = (0, 0);
    for tick in 0..24 * 60 * 6 {
        sleep(Duration::from_secs(10)).await;
        let now = start.elapsed();
        // One that is wanted every ten seconds, and one that is every ten minutes.
        for (resource, every) in [(&defaults[0], 60), (&defaults[1], 1)] {
            if tick % every != 0 {
                continue;
            }
            match resource.get().await {
                Ok(conn) => {
                    assert!(every == 1 || !conn.is_reused(), "rests longer than idle_timeout");
                    assert!(conn.age() <= lifetime, "{:?}", conn.age());
                    conn.put();
                }
                Err(error) => {
                    assert!(matches!(error, GetError::Dial { .. }), "{error}");
                    assert!(
                        is_down(now) || is_down(now.saturating_sub(Duration::from_secs(10))),
                        "{now:?}: {error}"
                    );
                    failed += 1;
                    refused_unasked += usize::from(error.phase() == Phase::BackingOff);
                }
            }
        }
        let idle = stock.stats().idle;
        assert!(idle <= 4 + 2, "{idle}: the stock, and what a get dialled while it was filled");
        // A stock is filled when something brings it about: a get, or the end of one of its connections.
        if !is_down(now)
            && tick % 6 == 0
            && let Ok(conn) = stock.get().wait_for_ready().await
        {
            conn.put();
        }
        if !is_down(now) && now.as_secs() % HOUR.as_secs() > 600 {
            assert!(stock.stats().idle >= 3, "at {now:?}: {:?}", stock.stats());
        }
    }

    // 24 hours of 90 s idle time: the rare one is dialled for each get.
    let rare_dials = rare.dials.lock().unwrap().len();
    assert!((140..=24 * 6 + 24 * 3).contains(&rare_dials), "{rare_dials}");
    assert!(
        rare.ages.lock().unwrap().iter().all(|age| *age < Duration::from_secs(92)),
        "expires without a get"
    );
    // The busy one lives for 30 minutes, less up to a tenth, and dies at different ages.
    let ages = busy.ages.lock().unwrap().clone();
    assert!(ages.len() >= 24 * 2 - 4, "{}", ages.len());
    let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
    assert!(
        *least >= lifetime * 9 / 10 && *most <= lifetime + Duration::from_secs(1),
        "{least:?} to {most:?}"
    );
    assert!(*most - *least > lifetime / 50, "jittered: {least:?} to {most:?}");
    // An outage is told of: some times by a dial, else by the pause. Its pauses grow to 5 s at most, and dials begin no
    // more often than the callers come.
    assert!(failed > 0, "the outages were seen");
    println!("failed gets: {failed}, of them without a dial: {refused_unasked}; rare dials: {rare_dials}");
    for (peer, callers) in [(&rare, 1), (&busy, 13)] {
        let dials = peer.dials.lock().unwrap();
        for hour in 1..24 {
            let of_outage = |dial: &&Instant| {
                let at = dial.duration_since(start);
                at >= HOUR * hour && at < HOUR * hour + OUTAGE
            };
            let dials = dials.iter().filter(of_outage).count();
            assert!(dials <= callers, "{dials} dials in an outage");
        }
    }
    drop((defaults, stock));
    sleep(Duration::from_secs(1)).await;
    assert_at_rest(&budget, 0);
}
