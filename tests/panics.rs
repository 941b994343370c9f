//! A panic in user code costs its own caller only, and loses no slot.

mod support;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fdpool::dial::{CheckContext, Watch};
use fdpool::{Address, Budget, ConnResource, Dial, DialContext, DialError, Fitness, Held};
use futures::FutureExt;
use support::{Moving, assert_at_rest, poll, ready};
use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum In {
    #[default]
    Nothing,
    Dial,
    /// After its first await.
    DialLater,
    Check,
    Close,
    Drop,
}

/// Panics where it is told to, once.
#[derive(Clone, Default)]
struct Bomb(Arc<Mutex<In>>, Arc<AtomicUsize>);

impl Bomb {
    fn arm(&self, place: In) {
        *self.0.lock().unwrap() = place;
    }

    fn pass(&self, place: In) {
        let mut armed = self.0.lock().unwrap();
        if *armed == place {
            *armed = In::Nothing;
            drop(armed);
            panic!("in {place:?}");
        }
    }
}

struct Fragile(Bomb);

impl Drop for Fragile {
    fn drop(&mut self) {
        self.0.1.fetch_sub(1, Ordering::SeqCst);
        self.0.pass(In::Drop);
    }
}

impl Dial for Bomb {
    type Conn = Fragile;

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<Fragile, DialError> {
        self.pass(In::Dial);
        tokio::task::yield_now().await;
        self.pass(In::DialLater);
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(Fragile(self.clone()))
    }

    fn check(&self, _: &mut Fragile, _: &CheckContext) -> Fitness {
        self.pass(In::Check);
        Fitness::Fit
    }

    fn close(&self, conn: Fragile) {
        self.pass(In::Close);
        drop(conn);
    }
}

fn fragile(budget: &Budget) -> (Bomb, ConnResource<Fragile>, ConnResource<Fragile>) {
    let bomb = Bomb::default();
    let resource = |name| ConnResource::builder(name, bomb.clone()).budget(budget).build();
    let (a, b) = (resource("a"), resource("b"));
    (bomb, a, b)
}

async fn panics<T>(future: impl Future<Output = T>) -> bool {
    AssertUnwindSafe(future).catch_unwind().await.is_err()
}

#[tokio::test]
async fn in_dial() {
    for place in [In::Dial, In::DialLater] {
        let budget = Budget::new(1);
        let (bomb, a, b) = fragile(&budget);
        bomb.arm(place);
        let mut waiting = b.get();
        let caller = async { a.get().await.map(drop) };
        let mut caller = Box::pin(AssertUnwindSafe(caller).catch_unwind());
        if place == In::DialLater {
            assert!(poll(&mut caller).is_pending());
            assert!(poll(&mut waiting).is_pending());
        }
        assert!(caller.await.is_err());
        drop(waiting.await.unwrap());
        assert_eq!(budget.stats().dial_failures, 1);
        assert_at_rest(&budget, 0);
    }
}

#[tokio::test]
async fn in_a_dial_that_went_on_without_its_get() {
    let budget = Budget::new(2);
    let (bomb, a, _) = fragile(&budget);
    let conn = a.get().await.unwrap();
    let mut get = a.get();
    assert!(poll(&mut get).is_pending());
    conn.put();
    bomb.arm(In::DialLater);
    let conn = ready(&mut get).unwrap();
    support::settle().await;
    conn.put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn in_check() {
    let budget = Budget::new(1);
    let (bomb, a, _) = fragile(&budget);
    a.get().await.unwrap().put();
    bomb.arm(In::Check);
    assert!(panics(a.get()).await);
    assert_eq!(bomb.1.load(Ordering::SeqCst), 0, "closed");
    assert_at_rest(&budget, 0);
    a.get().await.unwrap().put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn in_check_of_a_connection_that_was_handed_over() {
    let budget = Budget::new(1);
    let (bomb, a, _) = fragile(&budget);
    let conn = a.get().await.unwrap();
    let mut caller = Box::pin(AssertUnwindSafe(a.get()).catch_unwind());
    let mut behind = a.get();
    assert!(poll(&mut caller).is_pending());
    assert!(poll(&mut behind).is_pending());
    bomb.arm(In::Check);
    conn.put();
    assert!(ready(&mut caller).is_err());
    drop(caller);
    drop(behind.await.unwrap());
    assert_eq!((a.stats().reused, budget.stats().reused), (0, 0), "nobody was given it");
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn in_close_and_drop_by_the_owner() {
    for place in [In::Close, In::Drop] {
        for explicit in [true, false] {
            let budget = Budget::new(1);
            let (bomb, a, b) = fragile(&budget);
            let conn = a.get().await.unwrap();
            let mut waiting = b.get();
            assert!(poll(&mut waiting).is_pending());
            bomb.arm(place);
            let closed =
                std::panic::catch_unwind(AssertUnwindSafe(
                    || if explicit { conn.close() } else { drop(conn) },
                ));
            assert!(closed.is_err(), "the owner learns of it");
            drop(waiting.await.unwrap());
            assert_eq!(bomb.1.load(Ordering::SeqCst), 0);
            assert_at_rest(&budget, 0);
        }
    }
}

#[tokio::test]
async fn in_the_close_of_somebody_elses_idle_connection() {
    for place in [In::Close, In::Drop] {
        let budget = Budget::new(1);
        let (bomb, a, b) = fragile(&budget);
        a.get().await.unwrap().put();
        bomb.arm(place);
        let conn = b.get().await.unwrap();
        assert_eq!(budget.stats().panics, 1, "counted, and not the evictor's business");
        conn.put();
        bomb.arm(place);
        b.schedule_close();
        assert_eq!(budget.stats().panics, 2);
        assert_at_rest(&budget, 0);
    }
}

#[tokio::test]
async fn while_its_owner_panics() {
    let budget = Budget::new(1);
    let (bomb, a, _) = fragile(&budget);
    bomb.arm(In::Drop);
    let task = tokio::spawn(async move {
        let _conn = a.get().await.unwrap();
        panic!("the owner");
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(budget.stats().panics, 1);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn where_an_address_is_asked_whether_it_moved() {
    let (budget, moved) = (Budget::new(2), Arc::new(Notify::new()));
    let watched = Arc::clone(&moved);
    let watch = move || -> Option<Watch> {
        let moved = Arc::clone(&watched);
        Some(Box::pin(async move { moved.notified().await }))
    };
    let dialer = Moving { watch, is_current: || panic!("is it?") };
    let resource = ConnResource::builder("a", dialer).budget(&budget).build();
    let (idle, used) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    support::settle().await;
    idle.put();
    assert_eq!((budget.stats().panics, resource.stats().idle), (1, 0), "nobody's, and that one is closed");
    moved.notify_one();
    support::settle().await;
    used.put();
    assert_eq!(budget.stats().panics, 2);
    assert_at_rest(&budget, 0);
}

/// Its end panics, and so may be the doing of whoever has the last trace of its address. What its connections have open is
/// elsewhere, if the test takes that.
struct BadEnd {
    held: Arc<Mutex<Vec<Held<()>>>>,
    parts: bool,
    /// Goes with the first close.
    last: Arc<Mutex<Option<ConnResource<()>>>>,
}

impl Dial for BadEnd {
    type Conn = ();

    async fn dial(&self, _: &Address, cx: &DialContext) -> Result<(), DialError> {
        if self.parts {
            self.held.lock().unwrap().push(cx.hold(()));
        }
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn close(&self, (): ()) {
        let last = self.last.lock().unwrap().take();
        drop(last);
    }
}

impl Drop for BadEnd {
    fn drop(&mut self) {
        panic!("at its end");
    }
}

#[tokio::test]
async fn in_the_end_of_a_dialer_while_others_are_served() {
    let (budget, held) = (Budget::new(1), Arc::<Mutex<Vec<_>>>::default());
    let dialer = BadEnd { held: Arc::clone(&held), parts: true, last: Arc::default() };
    let resource = ConnResource::builder("a", dialer).budget(&budget).build();
    drop(resource.get().await.unwrap());
    drop(resource);
    let waiting = tokio::spawn({
        let budget = budget.clone();
        async move { budget.acquire().await.map(drop) }
    });
    support::settle().await;
    assert_eq!(budget.stats().waiting, 1);
    held.lock().unwrap().clear();
    waiting.await.unwrap().unwrap();
    assert_at_rest(&budget, 0);
    assert_eq!(budget.stats().panics, 1);
}

#[tokio::test]
async fn in_the_end_of_a_dialer_whose_connection_is_closed_for_another() {
    let (budget, last) = (Budget::new(2), Arc::<Mutex<_>>::default());
    let dialer = BadEnd { held: Arc::default(), parts: false, last: Arc::clone(&last) };
    let resource = ConnResource::builder("a", dialer).budget(&budget).build();
    resource.get().await.unwrap().put();
    *last.lock().unwrap() = Some(resource);
    let slot = budget.acquire().await.unwrap();
    let mut both = budget.acquire_many(2);
    assert!(poll(&mut both).is_pending());
    drop(slot);
    drop(ready(&mut both).unwrap());
    assert_at_rest(&budget, 0);
    assert_eq!((budget.stats().panics, budget.stats().evicted), (1, 1));
}
