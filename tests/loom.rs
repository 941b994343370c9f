//! The protocols between threads, model-checked: loom runs each model in every order of its threads' steps,
//! up to a number of preemptions, and with every value an atomic may be read as. A waiter that is forgotten
//! shows as a deadlock.
//!
//! `RUSTFLAGS="--cfg fdpool_loom" cargo test --release --test loom`. That each model finds what it is there
//! to find is checked by `.ci/break-loom`.
#![cfg(fdpool_loom)]

use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fdpool::dial::CheckContext;
use fdpool::{
    Address, Budget, Conn, ConnResource, Dial, DialContext, DialError, Fitness, Held, Reclaim, Slot,
};
use loom::cell::UnsafeCell;
use loom::future::block_on;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};
use loom::thread;

/// Runs a model in all its orders. A preemption is a switch away from a thread that could have gone on.
fn model(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
    // Time stands still, since runs have to be repeatable, and victims are chosen by times.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O");
    let _time = runtime.enter();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    let orders = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&orders);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        check();
    });
    println!("{} orders", orders.load(Ordering::Relaxed));
}

/// A budget, and what its connections are up to.
///
/// Counts in the standard library's atomics, which loom does not branch at: its threads run one at a time,
/// and the counts are not what is checked.
struct World {
    budget: Budget,
    open: AtomicUsize,
    dials: AtomicUsize,
    /// Set by the model; connections remember in which they were dialled. Loom's: it may come at any step.
    epoch: loom::sync::atomic::AtomicUsize,
    /// The peers have closed what was dialled until now, which only the keeper finds.
    hung_up: std::sync::atomic::AtomicBool,
}

impl World {
    fn new(limit: usize) -> Arc<Self> {
        let [open, dials] = [0; 2].map(AtomicUsize::new);
        Arc::new(Self {
            budget: Budget::new(limit),
            open,
            dials,
            epoch: loom::sync::atomic::AtomicUsize::new(0),
            hung_up: Default::default(),
        })
    }

    fn resource(self: &Arc<Self>, address: &str) -> ConnResource<Fake> {
        ConnResource::builder(address, Dialer { world: Arc::clone(self), elsewhere: None })
            .budget(&self.budget)
            .dial_timeout(None)
            .wait_timeout(None)
            .build()
    }

    /// A resource one connection of which is in use, and has been idle before: it is put the short way.
    fn warm(self: &Arc<Self>, address: &str) -> (ConnResource<Fake>, Conn<Fake>) {
        let resource = self.resource(address);
        get(&resource).put();
        let conn = resource.try_get().expect("the one just put");
        (resource, conn)
    }

    /// A resource with one idle connection that the keeper has not looked at for a while.
    fn rested(self: &Arc<Self>, address: &str) -> ConnResource<Fake> {
        let (resource, conn) = self.warm(address);
        conn.put();
        block_on(tokio::time::advance(Duration::from_secs(1)));
        resource
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// Nobody has anything, nobody waits, and all slots can be had, whatever rests.
    #[track_caller]
    fn assert_at_rest(&self) {
        let at = Location::caller();
        let stats = self.budget.stats();
        let busy = [stats.in_use, stats.dialing, stats.closing, stats.held, stats.waiting];
        assert_eq!(busy, [0; 5], "in use, dialing, closing, held, waiting, at {at}");
        assert_eq!(stats.idle, self.open.load(Ordering::Relaxed), "idle and open, at {at}");
        let slots: Vec<_> = std::iter::from_fn(|| self.budget.try_acquire()).collect();
        assert_eq!(slots.len(), self.budget.limit(), "slots to be had, at {at}");
        assert_eq!(self.open.load(Ordering::Relaxed), 0, "open with all slots out, at {at}");
    }
}

/// A connection that counts itself, and knows when it is touched by two at once.
struct Fake {
    world: Arc<World>,
    epoch: usize,
    /// Loom's: touching it fails unless who touched it before has handed it over.
    owner: UnsafeCell<()>,
}

impl Fake {
    fn touch(&self) {
        self.owner.with_mut(|_| {});
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.touch();
        self.world.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connects at once.
struct Dialer {
    world: Arc<World>,
    /// Where the slots of its connections go, if not with these.
    elsewhere: Option<Stash>,
}

type Stash = Arc<std::sync::Mutex<Option<Held<()>>>>;

impl Dial for Dialer {
    type Conn = Fake;

    async fn dial(&self, _: &Address, cx: &DialContext) -> Result<Fake, DialError> {
        let world = Arc::clone(&self.world);
        world.dials.fetch_add(1, Ordering::Relaxed);
        let open = world.open.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(open <= world.budget.limit(), "{open} open");
        if let Some(stash) = &self.elsewhere {
            *stash.lock().unwrap() = Some(cx.hold(()));
        }
        let epoch = world.epoch.load(Relaxed);
        Ok(Fake { world, epoch, owner: UnsafeCell::new(()) })
    }

    fn check(&self, conn: &mut Fake, _: &CheckContext) -> Fitness {
        conn.touch();
        Fitness::Fit
    }

    fn poll_idle(&self, conn: &mut Fake, _: &mut Context<'_>) -> Poll<Fitness> {
        conn.touch();
        match self.world.hung_up.load(Ordering::Relaxed) {
            true => Poll::Ready(Fitness::Closed),
            false => Poll::Pending,
        }
    }
}

#[track_caller]
fn get(resource: &ConnResource<Fake>) -> Conn<Fake> {
    let conn = block_on(resource.get()).expect("nothing to fail by");
    conn.touch();
    conn
}

/// Polls once, for a place in line.
fn line_up(future: impl Future + Unpin) {
    assert!(pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

// ---- put against a waiter

#[test]
fn put_serves_who_waits_at_its_address() {
    model(4, || {
        let world = World::new(1);
        let (a, conn) = world.warm("a");
        let putter = thread::spawn(move || conn.put());
        get(&a).put();
        putter.join().unwrap();
        assert_eq!(world.dials(), 1, "what came back is taken, not closed for another");
        world.assert_at_rest();
    });
}

#[test]
fn put_serves_who_waits_at_another_address() {
    model(4, || {
        let world = World::new(1);
        let ((a, conn), b) = (world.warm("a"), world.resource("b"));
        let putter = thread::spawn(move || conn.put());
        get(&b).put();
        putter.join().unwrap();
        assert_eq!(a.stats().idle, 0);
        world.assert_at_rest();
    });
}

/// A waiter is promised a slot whose descriptor somebody else closes, who knows when.
#[test]
fn put_serves_who_waits_for_a_descriptor_elsewhere() {
    model(4, || {
        let world = World::new(2);
        let stash = Stash::default();
        let dialer = Dialer { world: Arc::clone(&world), elsewhere: Some(Arc::clone(&stash)) };
        let lingering = ConnResource::builder("lingering", dialer)
            .budget(&world.budget)
            .dial_timeout(None)
            .wait_timeout(None)
            .build();
        let ((_a, conn), b) = (world.warm("a"), world.resource("b"));
        get(&lingering).put();
        let mut waiter = b.get();
        line_up(&mut waiter);
        let putter = thread::spawn(move || conn.put());
        block_on(waiter).unwrap().put();
        putter.join().unwrap();
        let held = stash.lock().unwrap().take();
        drop(held);
        world.assert_at_rest();
    });
}

// ---- in line behind others, of which the books are not told

#[test]
fn who_gets_in_line_behind_another_is_served_after_it() {
    model(2, || {
        let world = World::new(1);
        let (a, conn) = world.warm("a");
        let mut first = a.get_owned();
        line_up(&mut first);
        let putter = thread::spawn(move || conn.put());
        let first = thread::spawn(move || block_on(first).unwrap().put());
        get(&a).put();
        putter.join().unwrap();
        first.join().unwrap();
        assert_eq!(world.dials(), 1, "what came back is taken");
        world.assert_at_rest();
    });
}

#[test]
fn who_gets_in_line_behind_another_gets_a_slot_after_it() {
    model(2, || {
        let world = World::new(1);
        let (a, (_b, conn)) = (world.resource("a"), world.warm("b"));
        let mut first = a.get_owned();
        line_up(&mut first);
        let closer = thread::spawn(move || conn.close());
        let first = thread::spawn(move || block_on(first).unwrap().close());
        get(&a).close();
        closer.join().unwrap();
        first.join().unwrap();
        world.assert_at_rest();
    });
}

// ---- evict against get

#[test]
fn an_idle_one_is_either_got_or_evicted() {
    model(4, || {
        let world = World::new(1);
        let ((a, conn), b) = (world.warm("a"), world.resource("b"));
        conn.put();
        let getter = {
            let a = a.clone();
            thread::spawn(move || get(&a).put())
        };
        get(&b).put();
        getter.join().unwrap();
        world.assert_at_rest();
    });
}

#[test]
fn each_of_three_addresses_has_its_turn_with_one_slot() {
    model(2, || {
        let world = World::new(1);
        let ((a, conn), b, c) = (world.warm("a"), world.resource("b"), world.resource("c"));
        conn.put();
        let others = [b, c].map(|resource| thread::spawn(move || get(&resource).put()));
        get(&a).put();
        others.into_iter().for_each(|other| other.join().unwrap());
        world.assert_at_rest();
    });
}

#[test]
fn a_shrinking_limit_takes_what_is_put_meanwhile() {
    model(4, || {
        let world = World::new(2);
        let ((a, conn), (_b, kept)) = (world.warm("a"), world.warm("b"));
        let putter = thread::spawn(move || conn.put());
        world.budget.set_limit(1);
        putter.join().unwrap();
        assert_eq!((a.stats().idle, world.budget.stats().in_use), (0, 1));
        kept.put();
        world.assert_at_rest();
    });
}

#[test]
fn who_wants_two_gets_what_comes_back_from_two() {
    model(3, || {
        let world = World::new(2);
        let ((_a, one), (_b, two)) = (world.warm("a"), world.warm("b"));
        let putters = [one, two].map(|conn| thread::spawn(move || conn.put()));
        let slot = block_on(world.budget.acquire_many(2)).unwrap();
        putters.into_iter().for_each(|putter| putter.join().unwrap());
        drop(slot);
        world.assert_at_rest();
    });
}

// ---- cancel against hand-over

#[test]
fn what_is_handed_to_one_who_leaves_goes_to_the_next_at_the_address() {
    model(3, || {
        let world = World::new(1);
        let (a, conn) = world.warm("a");
        let (mut leaver, mut next) = (a.get_owned(), a.get_owned());
        line_up(&mut leaver);
        line_up(&mut next);
        let putter = thread::spawn(move || conn.put());
        let leaving = thread::spawn(move || drop(leaver));
        block_on(next).unwrap().put();
        putter.join().unwrap();
        leaving.join().unwrap();
        assert_eq!(world.dials(), 1, "the connection itself is passed on");
        world.assert_at_rest();
    });
}

#[test]
fn what_is_handed_to_one_who_leaves_goes_to_the_next_elsewhere() {
    model(3, || {
        let world = World::new(1);
        let ((a, conn), b) = (world.warm("a"), world.resource("b"));
        let (mut leaver, mut next) = (a.get_owned(), b.get_owned());
        line_up(&mut leaver);
        line_up(&mut next);
        // By a slot: it is closed, not put.
        let closer = thread::spawn(move || conn.close());
        let leaving = thread::spawn(move || drop(leaver));
        block_on(next).unwrap().put();
        closer.join().unwrap();
        leaving.join().unwrap();
        world.assert_at_rest();
    });
}

// ---- the keeper's look at an idle one against who wants it

#[test]
fn nobody_dials_for_what_is_only_looked_at() {
    model(3, || {
        let world = World::new(2);
        let a = world.rested("a");
        let keeper = {
            let a = a.clone();
            thread::spawn(move || a.look_after_idle())
        };
        get(&a).put();
        keeper.join().unwrap();
        assert_eq!(world.dials(), 1, "it comes back presently");
        world.assert_at_rest();
    });
}

#[test]
fn who_waits_for_what_is_looked_at_dials_when_it_has_gone() {
    model(3, || {
        let world = World::new(2);
        let a = world.rested("a");
        world.hung_up.store(true, Ordering::Relaxed);
        let keeper = {
            let a = a.clone();
            thread::spawn(move || a.look_after_idle())
        };
        get(&a).put();
        keeper.join().unwrap();
        world.assert_at_rest();
    });
}

#[test]
fn what_is_looked_at_does_not_outlive_being_told_to_close() {
    model(4, || {
        let world = World::new(1);
        let a = world.rested("a");
        let keeper = {
            let a = a.clone();
            thread::spawn(move || a.look_after_idle())
        };
        a.schedule_close();
        keeper.join().unwrap();
        assert_eq!((a.stats().idle, a.try_get().is_none()), (0, true));
        world.assert_at_rest();
    });
}

// ---- schedule_close against put and dial

#[test]
fn nothing_that_was_told_to_close_rests() {
    model(4, || {
        let world = World::new(1);
        let (a, conn) = world.warm("a");
        let putter = thread::spawn(move || conn.put());
        a.schedule_close();
        putter.join().unwrap();
        assert_eq!((a.stats().idle, a.try_get().is_none()), (0, true));
        world.assert_at_rest();
    });
}

#[test]
fn nothing_rests_whose_dial_began_before_it_was_told_to_close() {
    model(4, || {
        let world = World::new(1);
        let a = world.resource("a");
        let user = {
            let a = a.clone();
            thread::spawn(move || get(&a).put())
        };
        world.epoch.store(1, Relaxed);
        a.schedule_close();
        user.join().unwrap();
        if let Some(conn) = a.try_get() {
            assert_eq!(conn.epoch, 1, "dialled since");
            conn.put();
        }
        world.assert_at_rest();
    });
}

// ---- a participant's became_idle against a waiter

/// A pool of another kind, of one descriptor.
struct Other {
    /// Looked at first, as pools do, with no ordering of its own: what makes it seen are the budget's fences.
    is_idle: AtomicBool,
    idle: Mutex<Option<Slot>>,
}

impl Reclaim for Other {
    fn idle(&self) -> usize {
        usize::from(self.is_idle.load(Relaxed))
    }

    fn reclaim_one(&self) -> bool {
        if !self.is_idle.load(Relaxed) {
            return false;
        }
        let slot = self.idle.lock().unwrap().take();
        slot.is_some()
    }
}

#[test]
fn what_a_participant_has_idle_goes_to_who_waits() {
    model(4, || {
        let world = World::new(1);
        let other = Arc::new(Other { is_idle: AtomicBool::new(false), idle: Mutex::new(None) });
        let registration = world.budget.register(&other);
        let slot = world.budget.try_acquire();
        let participant = thread::spawn(move || {
            *other.idle.lock().unwrap() = slot;
            other.is_idle.store(true, Relaxed);
            registration.became_idle();
            (other, registration)
        });
        let slot = block_on(world.budget.acquire()).unwrap();
        let participant = participant.join().unwrap();
        drop(slot);
        world.assert_at_rest();
        drop(participant);
    });
}
