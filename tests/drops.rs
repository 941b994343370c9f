//! Dropping a get at each of its polls, in every state of the behaviour table, loses nothing: whoever waits
//! behind it is served, and every slot comes back.

mod support;

use std::io;
use std::sync::Arc;
use std::task::Poll;

use fdpool::{Budget, Conn, ConnResource, DialError, Fitness, Get};
use support::{Fake, Script, fakes_with, poll, settle};

const LIMIT: usize = 2;

/// What happens between two polls of the get that is dropped.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The oldest dial ends well.
    Dialled,
    /// The oldest dial is refused.
    Refused,
    /// The oldest dial finds no descriptor.
    NoDescriptor,
    /// A connection in use is put.
    Put,
    /// A connection in use is put that is no longer fit.
    PutUnfit,
    /// A connection in use is closed.
    Close,
    ScheduleClose,
    /// Another caller gets in line at the same address.
    OtherHere,
    /// Another caller gets in line at another address.
    OtherElsewhere,
    /// Everything else that runs on the runtime runs.
    Settle,
}
use Step::*;

/// A state to begin with, and what happens then.
struct Scenario {
    name: &'static str,
    idle_here: usize,
    idle_elsewhere: usize,
    used_here: usize,
    used_elsewhere: usize,
    stale: bool,
    max_conns: usize,
    fresh: bool,
    steps: &'static [Step],
}

const NOTHING: Scenario = Scenario {
    name: "nothing open",
    idle_here: 0,
    idle_elsewhere: 0,
    used_here: 0,
    used_elsewhere: 0,
    stale: false,
    max_conns: usize::MAX,
    fresh: false,
    steps: &[Dialled],
};

const SCENARIOS: &[Scenario] = &[
    NOTHING,
    Scenario { name: "dial refused", steps: &[Refused], ..NOTHING },
    Scenario {
        name: "dial refused, others wait",
        steps: &[OtherHere, OtherElsewhere, Refused, Dialled],
        ..NOTHING
    },
    Scenario {
        name: "no descriptor",
        steps: &[OtherHere, NoDescriptor, Settle, Dialled, Dialled],
        ..NOTHING
    },
    Scenario {
        name: "no descriptor, one idle",
        idle_elsewhere: 1,
        steps: &[NoDescriptor, Settle, Dialled],
        ..NOTHING
    },
    Scenario { name: "idle", idle_here: 1, steps: &[], ..NOTHING },
    Scenario {
        name: "idle, fresh",
        idle_here: 1,
        fresh: true,
        steps: &[OtherHere, Dialled, Settle],
        ..NOTHING
    },
    Scenario { name: "idle and stale", idle_here: 2, stale: true, steps: &[Dialled], ..NOTHING },
    Scenario {
        name: "others idle",
        idle_elsewhere: 2,
        steps: &[OtherElsewhere, Dialled, Dialled],
        ..NOTHING
    },
    Scenario { name: "full, put here", used_here: 2, steps: &[OtherHere, Put, Settle, Put], ..NOTHING },
    Scenario {
        name: "full, unfit put here",
        used_here: 2,
        steps: &[OtherHere, PutUnfit, Settle, Dialled, Put],
        ..NOTHING
    },
    Scenario {
        name: "full, close here",
        used_here: 2,
        steps: &[OtherElsewhere, Close, Settle, Dialled, Put],
        ..NOTHING
    },
    Scenario {
        name: "full, put elsewhere",
        used_elsewhere: 2,
        steps: &[OtherHere, Put, Settle, Dialled, Put],
        ..NOTHING
    },
    Scenario {
        name: "full, others before and behind",
        used_here: 1,
        used_elsewhere: 1,
        steps: &[OtherElsewhere, OtherHere, Put, Settle, Dialled, Put, Settle, Dialled],
        ..NOTHING
    },
    Scenario {
        name: "address busy, put",
        used_here: 1,
        max_conns: 1,
        steps: &[OtherHere, Put, Settle],
        ..NOTHING
    },
    Scenario {
        name: "address busy, close",
        used_here: 1,
        max_conns: 1,
        steps: &[OtherHere, Close, Settle, Dialled],
        ..NOTHING
    },
    Scenario {
        name: "address busy, fresh",
        idle_here: 1,
        max_conns: 1,
        fresh: true,
        steps: &[OtherHere, Dialled, Settle],
        ..NOTHING
    },
    Scenario { name: "race of put and dial", used_here: 1, steps: &[Put, Settle, Dialled], ..NOTHING },
    Scenario {
        name: "race, others wait",
        used_here: 1,
        steps: &[OtherHere, OtherElsewhere, Put, Settle, Dialled],
        ..NOTHING
    },
    Scenario {
        name: "race, dial refused",
        used_here: 1,
        steps: &[OtherHere, Put, Settle, Refused],
        ..NOTHING
    },
    Scenario {
        name: "closed meanwhile",
        used_here: 1,
        steps: &[ScheduleClose, Put, Settle, Dialled],
        ..NOTHING
    },
    Scenario {
        name: "busy and closed meanwhile",
        used_here: 2,
        steps: &[ScheduleClose, OtherHere, Put, Settle, Dialled],
        ..NOTHING
    },
];

struct World {
    budget: Budget,
    script: Arc<Script>,
    here: ConnResource<Fake>,
    elsewhere: ConnResource<Fake>,
    used: Vec<Conn<Fake>>,
    others: Vec<Get<'static, Fake>>,
}

impl World {
    async fn new(scenario: &Scenario) -> Self {
        let (budget, script) = (Budget::new(LIMIT), Arc::<Script>::default());
        let here = fakes_with("here", &budget, &script).max_conns(scenario.max_conns).build();
        let elsewhere = fakes_with("elsewhere", &budget, &script).build();
        let mut used = Vec::new();
        for (resource, idle, in_use) in [
            (&here, scenario.idle_here, scenario.used_here),
            (&elsewhere, scenario.idle_elsewhere, scenario.used_elsewhere),
        ] {
            let mut resting = Vec::new();
            for _ in 0..idle {
                resting.push(resource.get().await.expect("a fake"));
            }
            for conn in resting {
                if scenario.stale {
                    *conn.handle().lock().unwrap() = Fitness::Closed;
                }
                conn.put();
            }
            for _ in 0..in_use {
                used.push(resource.get().fresh().await.expect("a fake"));
            }
        }
        script.manual.store(true, std::sync::atomic::Ordering::SeqCst);
        Self { budget, script, here, elsewhere, used, others: Vec::new() }
    }

    async fn apply(&mut self, step: Step) {
        let answer = |result: Result<(), DialError>| {
            if self.script.pending() > 0 {
                self.script.answer(result);
            }
        };
        match step {
            Dialled => answer(Ok(())),
            Refused => answer(Err(io::ErrorKind::ConnectionRefused.into())),
            NoDescriptor => answer(Err(io::Error::from_raw_os_error(24).into())),
            Put => self.used.pop().into_iter().for_each(Conn::put),
            PutUnfit => {
                if let Some(conn) = self.used.pop() {
                    *conn.handle().lock().unwrap() = Fitness::Closed;
                    conn.put();
                }
            }
            Close => self.used.pop().into_iter().for_each(Conn::close),
            ScheduleClose => self.here.schedule_close(),
            OtherHere => self.join(self.here.get_owned()),
            OtherElsewhere => self.join(self.elsewhere.get_owned()),
            Settle => settle().await,
        }
    }

    fn join(&mut self, mut other: Get<'static, Fake>) {
        if poll(&mut other).is_pending() {
            self.others.push(other);
        }
    }

    /// Everything that can end ends: dials succeed, connections are put, the others are served one by one.
    async fn finish(mut self, what: &str) {
        for conn in self.used.drain(..) {
            conn.put();
        }
        for _ in 0..100 {
            settle().await;
            while self.script.pending() > 0 {
                self.script.answer(Ok(()));
                settle().await;
            }
            self.others.retain_mut(|other| match poll(other) {
                Poll::Ready(Ok(conn)) => {
                    conn.put();
                    false
                }
                Poll::Ready(Err(_)) => false,
                Poll::Pending => true,
            });
            // What ran out of descriptors comes back with time.
            tokio::time::advance(std::time::Duration::from_millis(100)).await;
        }
        let explain = self.budget.explain();
        assert!(self.others.is_empty(), "{what}: {} others wait for ever: {explain}", self.others.len());
        let stats = self.budget.stats();
        let out = (stats.in_use, stats.dialing, stats.closing, stats.held, stats.waiting);
        assert_eq!(out, (0, 0, 0, 0, 0), "{what}: {stats:?}");
        assert_eq!(stats.idle, self.script.open(), "{what}: what is open is idle");
        let all = self.budget.acquire_many(LIMIT).immediate().await;
        assert!(all.is_ok(), "{what}: a slot is lost: {explain}");
        assert_eq!(self.script.open(), 0, "{what}: a connection is lost");
    }
}

/// Runs a scenario and drops the get after so many polls. Returns whether it got that far.
async fn run(scenario: &Scenario, drop_after: usize) -> bool {
    let what = format!("{}, dropped after {drop_after} polls", scenario.name);
    let mut world = World::new(scenario).await;
    let here = world.here.clone();
    let mut get = match scenario.fresh {
        true => Some(here.get().fresh()),
        false => Some(here.get()),
    };
    let mut polls = 0;
    let mut got = None;
    let mut steps = scenario.steps.iter();
    while let Some(pending) = &mut get {
        if polls == drop_after {
            break;
        }
        polls += 1;
        match poll(pending) {
            Poll::Ready(result) => {
                got = result.ok();
                get = None;
            }
            Poll::Pending => match steps.next() {
                Some(step) => world.apply(*step).await,
                None => break,
            },
        }
    }
    drop(get);
    drop(got);
    for step in steps {
        world.apply(*step).await;
    }
    drop(here);
    world.finish(&what).await;
    polls == drop_after
}

#[tokio::test(start_paused = true)]
async fn dropping_a_get_at_any_poll_loses_nothing() {
    for scenario in SCENARIOS {
        let mut drops = 0;
        while run(scenario, drops).await {
            drops += 1;
        }
        assert!(drops > 0 && drops <= scenario.steps.len() + 2, "{}: {drops}", scenario.name);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_was_served_and_leaves_takes_nobodys_place() {
    let (budget, script) = (Budget::new(2), Arc::new(Script::default()));
    let resource = fakes_with("here", &budget, &script).max_conns(2).build();
    let [first, second] = [(); 2].map(|()| support::ready(&mut resource.get()).unwrap());
    let mut served = resource.get();
    assert!(poll(&mut served).is_pending());
    first.put(); // to that one, which does not look
    tokio::time::sleep(std::time::Duration::from_secs(1)).await; // all that was there for its sake is over
    second.put();
    script.manual.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut next = resource.get().fresh();
    assert!(poll(&mut next).is_pending());
    drop(served);
    script.answer(Ok(()));
    support::ready(&mut next).unwrap().put();
    support::assert_at_rest(&budget, 2);
}
