//! Looks names up, for dials and in the background, and remembers the answers: a resolver that fails keeps its last
//! one, and a name that leads elsewhere is told to those who watch it.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::table::{Entry, LOOKUP_TIMEOUT, Look, Table};
use super::{AnyResolve, Lookup, Resolve, ResolveContext, System};
use crate::clock;
use crate::dial::{DialContext, Watch};
use crate::error::DialError;
use crate::sync::Mutex;

const LEAST_REFRESH: Duration = Duration::from_millis(10);
const MOST_REFRESH: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long a dial waits for the resolver if there is a last answer: RFC 8767, section 5.
const PATIENCE: Duration = Duration::from_millis(1800);

/// Lookups in the background, which no slot stands for, at a time on one runtime.
const IN_BACKGROUND: usize = 4;

/// A resolver, and what it last said.
pub(in crate::dial) struct Names {
    resolver: Arc<dyn AnyResolve>,
    refresh: Option<Duration>,
    stale_for: Duration,
    /// Under it: no await, no waker, no log, nothing of the resolver's.
    table: Mutex<Table>,
}

impl Names {
    /// The system's, with the defaults: one for all.
    pub(in crate::dial) fn system() -> Arc<Self> {
        static SYSTEM: LazyLock<Arc<Names>> = LazyLock::new(|| {
            Arc::new(Names {
                resolver: Arc::new(System),
                refresh: Some(Duration::from_secs(30)),
                stale_for: Duration::from_secs(24 * 60 * 60),
                table: Mutex::new(Table::default()),
            })
        });
        Arc::clone(&SYSTEM)
    }

    /// The same settings, another resolver.
    pub(in crate::dial) fn with_resolver(&self, resolver: impl Resolve) -> Arc<Self> {
        self.remade(|names| names.resolver = Arc::new(resolver))
    }

    pub(in crate::dial) fn with_refresh(&self, refresh: Option<Duration>) -> Arc<Self> {
        let sane = |period: Duration| period.clamp(LEAST_REFRESH, MOST_REFRESH);
        self.remade(|names| names.refresh = refresh.map(sane))
    }

    pub(in crate::dial) fn with_stale_for(&self, stale_for: Duration) -> Arc<Self> {
        self.remade(|names| names.stale_for = stale_for)
    }

    fn remade(&self, change: impl FnOnce(&mut Names)) -> Arc<Self> {
        let mut names = Names {
            resolver: Arc::clone(&self.resolver),
            refresh: self.refresh,
            stale_for: self.stale_for,
            table: Mutex::new(Table::default()),
        };
        change(&mut names);
        Arc::new(names)
    }

    /// The addresses of a host, for a dial.
    pub(in crate::dial) async fn lookup(
        self: &Arc<Self>,
        host: &str,
        cx: &DialContext,
    ) -> Result<Arc<[IpAddr]>, DialError> {
        let name = Name::enter(self, host);
        let last = name.last();
        if let Some(last) = last.filter(|_| name.entry(|entry| entry.is_asked_late(clock::instant()))) {
            return Ok(last); // what the resolver says in the end is remembered
        }
        let number = name.entry(Entry::ask);
        let context = ResolveContext::of_dial(cx);
        // CANCEL: the lookup goes, and what of it goes on keeps its share of the dial's slot.
        let lookup = Arc::clone(&self.resolver).resolve(Arc::clone(&name.host), context.same());
        let error = match name.patiently(lookup, number, &context, cx).await {
            Some(Ok(ips)) if !ips.is_empty() => {
                let ips = name.answered(number, ips);
                // CANCEL: what goes on keeps its share of the dial's slot.
                context.end(cx).await;
                return Ok(ips);
            }
            Some(Ok(_)) => no_addresses(),
            Some(Err(error)) if error.is_permanent() => {
                name.entry(|entry| entry.is_no_name(number));
                return Err(error);
            }
            Some(Err(error)) if error.is_out_of_descriptors() => return Err(error),
            Some(Err(error)) => error,
            None => std::io::Error::new(std::io::ErrorKind::TimedOut, "the resolver is slow").into(),
        };
        let last = name.last().ok_or_else(|| error.clone())?;
        if name.entry(Entry::failed) {
            tracing::warn!(host, %error, addresses = ?last, "name not resolved, its last answer is used");
        } else {
            tracing::debug!(host, %error, "name not resolved again");
        }
        // CANCEL: as above.
        context.end(cx).await;
        Ok(last)
    }

    /// Ready when the host leads elsewhere than now. `None`: nobody is to look.
    pub(in crate::dial) fn watch(self: &Arc<Self>, host: &str) -> Option<Watch> {
        self.refresh?;
        let name = Name::enter(self, host);
        let seen = name.entry(|entry| entry.version());
        Some(Box::pin(async move { name.changed(seen).await }))
    }

    /// Whether the host leads to an address, as far as is known.
    pub(in crate::dial) fn leads_to(&self, host: &str, ip: IpAddr) -> bool {
        self.table.lock().leads_to(host, ip)
    }

    /// Whether the IPv6 addresses of a host are to be tried first, if its resolver names the others first, or the other way
    /// round.
    pub(in crate::dial) fn ipv6_leads(&self, host: &str) -> Option<bool> {
        self.table.lock().ipv6_leads(host, clock::instant())
    }

    /// A dial has connected to this of a host's addresses.
    pub(in crate::dial) fn note_winner(&self, host: &str, winner: IpAddr) {
        self.table.lock().note_winner(host, winner, clock::instant());
    }

    /// When an answer that comes now is to be asked for again. Up to an eighth early, so that what asks at the same
    /// time once does not always.
    fn due(&self, now: Instant) -> Instant {
        let period = self.refresh.unwrap_or_default();
        now + period - (period / 8).mul_f64(unit())
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names")
            .field("resolver", &self.resolver.type_name())
            .field("refresh", &self.refresh)
            .field("stale_for", &self.stale_for)
            .finish_non_exhaustive()
    }
}

/// A name that is remembered while this lives.
struct Name {
    names: Arc<Names>,
    host: Arc<str>,
}

impl Name {
    fn enter(names: &Arc<Names>, host: &str) -> Self {
        let host = names.table.lock().enter(host);
        Self { names: Arc::clone(names), host }
    }

    fn entry<R>(&self, f: impl FnOnce(&mut Entry) -> R) -> R {
        f(self.names.table.lock().entry(&self.host))
    }

    fn last(&self) -> Option<Arc<[IpAddr]>> {
        let now = clock::instant();
        self.entry(|entry| entry.last(self.names.stale_for, now))
    }

    /// What the resolver says, or `None` if it takes long and there is a last answer: then it goes on by itself, in the
    /// background if there is a place there. What of it cannot be cancelled gets a slot, if there is one; if neither, it is
    /// waited for.
    async fn patiently(
        &self,
        mut lookup: Lookup,
        number: u64,
        context: &ResolveContext,
        cx: &DialContext,
    ) -> Option<Result<Vec<IpAddr>, DialError>> {
        if self.last().is_none() {
            return Some(lookup.await);
        }
        loop {
            match timeout(PATIENCE, lookup.as_mut()).await {
                Ok(answer) => return Some(answer),
                Err(_) if self.last().is_none() => (),
                Err(_) => {
                    // Who dials meanwhile does so at once: RFC 8767 has no name asked for again within 30 s that failed.
                    let until = clock::instant() + LOOKUP_TIMEOUT;
                    self.entry(|entry| entry.begin_late(number, until));
                    let is_shared = context.is_shared();
                    if is_shared && context.part_with(cx) || context.retire() {
                        self.goes_on(number, until, lookup);
                        return None;
                    }
                    if !is_shared {
                        return None;
                    }
                }
            }
        }
    }

    /// A lookup that its dial does not wait for: what it says is remembered, and nobody else asks meanwhile.
    fn goes_on(&self, number: u64, until: Instant, lookup: Lookup) {
        let late = Late { name: Name::enter(&self.names, &self.host), number };
        // CANCEL: given up in time, or with its runtime: then others ask again.
        tokio::spawn(async move {
            match timeout_at(until, lookup).await {
                Ok(Ok(ips)) if !ips.is_empty() => drop(late.name.answered(number, ips)),
                outcome => tracing::debug!(host = %late.name.host, ?outcome, "a slow resolver had no answer"),
            }
        });
    }

    /// Remembers an answer, and tells those who watch if it is new.
    fn answered(&self, number: u64, ips: Vec<IpAddr>) -> Arc<[IpAddr]> {
        let now = clock::instant();
        let due = self.names.due(now);
        let (ips, is_new, news) = self.entry(|entry| {
            let (ips, is_new) = entry.answered(number, ips, now, due);
            (ips, is_new, Arc::clone(&entry.news))
        });
        if is_new {
            tracing::debug!(host = %self.host, addresses = ?ips, "name leads elsewhere");
            news.notify_waiters();
        }
        ips
    }

    /// Ends when the answer is another than the one seen. Looks the name up meanwhile.
    async fn changed(&self, seen: u64) {
        let news = self.entry(|entry| Arc::clone(&entry.news));
        loop {
            let mut told = std::pin::pin!(news.notified());
            // From now on, so that nothing is missed between the look and the wait.
            told.as_mut().enable();
            let now = clock::instant();
            let next = self.names.due(now);
            match self.entry(|entry| entry.look(seen, now, next)) {
                Look::Changed => return,
                Look::Refresh => self.refresh().await,
                Look::Wait(until) => drop(timeout_at(until, told).await),
            }
        }
    }

    /// Looks the name up in the background. A failure keeps the last answer.
    async fn refresh(&self) {
        // Whoever else watches the name waits for this: told when it ends, however it does.
        let mut claim = Claim { name: self, kept: true };
        // CANCEL: the claim is given up.
        let outcome = self.ask_in_background().await;
        claim.kept = false;
        let Err(error) = outcome else { return };
        let due = self.names.due(clock::instant());
        self.entry(|entry| entry.put_off(due));
        if self.entry(Entry::failed) {
            tracing::warn!(host = %self.host, %error, "name not resolved, its last answer is kept");
        }
    }

    async fn ask_in_background(&self) -> Result<(), DialError> {
        let Ok(place) = timeout(LOOKUP_TIMEOUT, places().acquire_owned()).await else {
            let busy = "other lookups in the background do not return";
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, busy).into());
        };
        let context = ResolveContext::in_background(place.expect("BUG: the semaphore is never closed"));
        let number = self.entry(Entry::ask);
        let lookup = Arc::clone(&self.names.resolver).resolve(Arc::clone(&self.host), context);
        let ips = timeout(LOOKUP_TIMEOUT, lookup).await.map_err(std::io::Error::from)?;
        match ips {
            Ok(ips) if ips.is_empty() => Err(no_addresses()),
            Ok(ips) => {
                self.answered(number, ips);
                Ok(())
            }
            Err(error) => {
                if error.is_permanent() {
                    self.entry(|entry| entry.is_no_name(number));
                }
                Err(error)
            }
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.names.table.lock().leave(&self.host);
    }
}

/// The right to look a name up in the background.
struct Claim<'a> {
    name: &'a Name,
    kept: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let now = clock::instant();
        let news = self.name.entry(|entry| {
            if self.kept {
                entry.given_up(now);
            }
            Arc::clone(&entry.news)
        });
        news.notify_waiters();
    }
}

/// A lookup that its dial did not wait for.
struct Late {
    name: Name,
    number: u64,
}

impl Drop for Late {
    fn drop(&mut self) {
        self.name.entry(|entry| entry.end_late(self.number));
    }
}

/// The places for lookups in the background of this runtime. One that is not driven keeps its own from being used, and no
/// other's.
pub(super) fn places() -> Arc<Semaphore> {
    static OF_RUNTIMES: LazyLock<parking_lot::Mutex<HashMap<Id, Weak<Semaphore>>>> =
        LazyLock::new(parking_lot::Mutex::default);
    let mut all = OF_RUNTIMES.lock();
    let here = Handle::current().id();
    if let Some(places) = all.get(&here).and_then(Weak::upgrade) {
        return places;
    }
    all.retain(|_, places| places.strong_count() > 0);
    let places = Arc::new(Semaphore::new(IN_BACKGROUND));
    all.insert(here, Arc::downgrade(&places));
    places
}

fn no_addresses() -> DialError {
    std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no addresses").into()
}

/// Some number from 0 to 1.
fn unit() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}
