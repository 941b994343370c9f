//! Names: answers that change, resolvers that fail, hang or cannot be cancelled.

#[path = "support/names.rs"]
mod names;
mod support;

use std::future::Future;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fdpool::dial::{Tcp, Watch};
use fdpool::{Address, Budget, ConnResource, Dial, DialContext, GetError};
use names::{Answer, Script, listen, sockets_to_port};
use support::{Moving, assert_at_rest, fakes, poll, settle};
use tokio::net::TcpStream;

const OLD: &str = "127.0.0.2";
const NEW: &str = "127.0.0.3";

/// Peers on both addresses, a name that leads to the old one, and its dialer.
struct Setting {
    _listeners: Vec<std::net::TcpListener>,
    port: u16,
    address: Address,
    script: Arc<Script>,
    tcp: Tcp,
}

fn setting() -> Setting {
    let (listeners, port) = listen(&[OLD, NEW]);
    let script = Script::ips(&[OLD]);
    let tcp = Tcp::default().resolver(Arc::clone(&script));
    Setting { _listeners: listeners, port, address: ("peers.test", port).into(), script, tcp }
}

impl Setting {
    async fn dial(&self) -> TcpStream {
        self.tcp.dial(&self.address, &DialContext::detached()).await.unwrap()
    }

    fn watch(&self) -> Watch {
        self.tcp.watch(&self.address).expect("a name is watched")
    }

    fn is_current(&self, stream: &TcpStream) -> bool {
        self.tcp.is_current(&self.address, stream)
    }

    fn resource(&self, budget: &Budget) -> ConnResource {
        ConnResource::builder(&self.address, self.tcp.clone()).budget(budget).build()
    }
}

fn ip(stream: &TcpStream) -> IpAddr {
    stream.peer_addr().unwrap().ip()
}

async fn is_ready_within(watch: &mut Watch, time: Duration) -> bool {
    tokio::time::timeout(time, watch).await.is_ok()
}

const REFRESH: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test(start_paused = true)]
async fn a_name_that_leads_elsewhere_is_told_within_the_refresh_time() {
    let setting = setting();
    let before = setting.dial().await;
    assert_eq!(ip(&before), OLD.parse::<IpAddr>().unwrap());
    let mut watch = setting.watch();
    assert!(!is_ready_within(&mut watch, 10 * REFRESH).await, "nothing has changed");
    setting.script.say_ips(&[NEW]);
    assert!(is_ready_within(&mut watch, REFRESH).await);
    let after = setting.dial().await;
    assert_eq!(ip(&after), NEW.parse::<IpAddr>().unwrap());
    assert_eq!((setting.is_current(&before), setting.is_current(&after)), (false, true));
    let mut watch = setting.watch();
    assert!(!is_ready_within(&mut watch, 10 * REFRESH).await, "and only once");
}

#[tokio::test(start_paused = true)]
async fn addresses_that_come_beside_the_old_one_leave_it_current() {
    let setting = setting();
    let stream = setting.dial().await;
    let mut watch = setting.watch();
    setting.script.say_ips(&[NEW, OLD]);
    assert!(is_ready_within(&mut watch, REFRESH).await);
    assert!(setting.is_current(&stream));
    let mut watch = setting.watch();
    setting.script.say_ips(&[OLD, NEW]);
    assert!(!is_ready_within(&mut watch, 10 * REFRESH).await, "another order is no change");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_a_dial_sees_first_is_told_at_once() {
    let setting = setting();
    let before = setting.dial().await;
    let mut watches = [setting.watch(), setting.watch()];
    for watch in &mut watches {
        assert!(poll(watch).is_pending());
    }
    setting.script.say_ips(&[NEW]);
    let after = setting.dial().await;
    for watch in &mut watches {
        assert!(poll(watch).is_ready());
    }
    assert_eq!((setting.is_current(&before), setting.is_current(&after)), (false, true));
}

#[tokio::test(start_paused = true)]
async fn a_change_before_a_watch_is_first_polled_is_told() {
    let setting = setting();
    setting.dial().await;
    let mut watch = setting.watch();
    setting.script.say_ips(&[NEW]);
    setting.dial().await;
    assert!(poll(&mut watch).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_name_is_resolved_once_a_period_however_many_watch_it() {
    let setting = setting();
    setting.dial().await;
    let clones: Vec<_> = (0..20).map(|_| setting.tcp.clone()).collect();
    let watches = clones.iter().map(|tcp| tcp.watch(&setting.address).unwrap());
    let mut tasks: tokio::task::JoinSet<()> = watches.collect();
    let asked = setting.script.asked();
    tokio::time::sleep(100 * REFRESH).await;
    let asked = setting.script.asked() - asked;
    assert!((100..=115).contains(&asked), "{asked}");
    assert!(tasks.try_join_next().is_none(), "and none is told of a change");
}

#[tokio::test(start_paused = true)]
async fn names_do_not_keep_in_step() {
    let setting = setting();
    let mut tasks = tokio::task::JoinSet::new();
    let (tcp, port) = (&setting.tcp, setting.port);
    for n in 0..50 {
        let address = Address::from((format!("peer{n}.test"), port));
        tcp.dial(&address, &DialContext::detached()).await.unwrap();
        tasks.spawn(tcp.watch(&address).unwrap());
    }
    let asked = setting.script.asked();
    tokio::time::sleep(REFRESH - REFRESH / 16).await;
    let half = setting.script.asked() - asked;
    tokio::time::sleep(REFRESH / 16 + Duration::from_millis(10)).await;
    assert!((1..50).contains(&half), "{half} of 50 in the first half of the last eighth");
    assert!(setting.script.asked() - asked >= 50, "and all within the period");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_is_dropped_is_taken_over_by_another_watch() {
    let setting = setting();
    let stream = setting.dial().await;
    setting.script.say(Answer::Hangs);
    let mut first = setting.watch();
    assert!(!is_ready_within(&mut first, REFRESH).await);
    let (asked, mut second) = (setting.script.asked(), setting.watch());
    assert!(poll(&mut second).is_pending());
    assert_eq!(setting.script.asked(), asked, "the first is at it");
    setting.script.say_ips(&[NEW]);
    drop(first);
    assert!(poll(&mut second).is_ready());
    assert!(!setting.is_current(&stream));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_hangs_is_given_up_and_tried_again() {
    let setting = setting();
    setting.dial().await;
    setting.script.say(Answer::Hangs);
    let mut watch = setting.watch();
    assert!(!is_ready_within(&mut watch, REFRESH).await);
    setting.script.say_ips(&[NEW]);
    assert!(is_ready_within(&mut watch, 2 * REFRESH).await);
}

#[tokio::test(start_paused = true)]
async fn a_failing_resolver_keeps_the_last_answer() {
    let setting = setting();
    let stream = setting.dial().await;
    for failure in [Answer::Fails, Answer::Ips(vec![])] {
        setting.script.say(failure);
        let mut watch = setting.watch();
        assert!(!is_ready_within(&mut watch, 10 * REFRESH).await);
        assert!(setting.is_current(&stream));
        assert_eq!(ip(&setting.dial().await), ip(&stream), "and dials use it");
    }
    setting.script.say(Answer::NoSuchName);
    let mut watch = setting.watch();
    assert!(!is_ready_within(&mut watch, 10 * REFRESH).await);
    assert!(setting.is_current(&stream), "a name that is gone leaves connections alone");
    setting.script.say_ips(&[NEW]);
    assert!(is_ready_within(&mut watch, REFRESH).await, "and when it is back, that is seen");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_does_not_exist_is_not_dialled_by_its_last_answer() {
    let setting = setting();
    setting.dial().await;
    setting.script.say(Answer::NoSuchName);
    let error = setting.tcp.dial(&setting.address, &DialContext::detached()).await.unwrap_err();
    assert_eq!((error.is_permanent(), error.io_kind()), (true, Some(ErrorKind::NotFound)));
}

#[tokio::test(start_paused = true)]
async fn the_last_answer_is_dialled_for_a_day_or_as_long_as_you_say() {
    let setting = setting();
    let cx = DialContext::detached();
    let short = setting.tcp.clone().stale_for(Duration::ZERO);
    for tcp in [&setting.tcp, &short] {
        tcp.dial(&setting.address, &cx).await.unwrap();
    }
    setting.script.say(Answer::Fails);
    let error = short.dial(&setting.address, &cx).await.unwrap_err();
    assert!(!error.is_permanent(), "{error}");
    tokio::time::advance(DAY - Duration::from_secs(1)).await;
    setting.tcp.dial(&setting.address, &cx).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    setting.tcp.dial(&setting.address, &cx).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_slow_resolver_is_waited_for_only_if_there_is_no_last_answer() {
    let setting = setting();
    setting.dial().await;
    setting.script.say(Answer::Hangs);
    let mut dial = Box::pin(setting.dial());
    assert!(tokio::time::timeout(Duration::from_millis(1790), &mut dial).await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut dial).await.is_ok());
    let other = Address::from(("other.test", setting.port));
    let cx = DialContext::detached();
    assert!(tokio::time::timeout(DAY, setting.tcp.dial(&other, &cx)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_resolver_says_in_the_end_is_remembered() {
    for refresh in [Some(REFRESH), None] {
        let setting = setting();
        let tcp = setting.tcp.clone().refresh(refresh);
        let cx = DialContext::detached();
        tcp.dial(&setting.address, &cx).await.unwrap();
        setting
            .script
            .say(Answer::After(Duration::from_secs(5), Box::new(Answer::Ips(vec![NEW.parse().unwrap()]))));
        let asked = setting.script.asked();
        for _ in 0..3 {
            let dialled = tcp.dial(&setting.address, &cx).await.unwrap();
            assert_eq!(ip(&dialled), OLD.parse::<IpAddr>().unwrap());
        }
        assert_eq!(setting.script.asked() - asked, 1, "one lookup for all");
        tokio::time::sleep(Duration::from_secs(4)).await;
        setting.script.say(Answer::Fails);
        let dialled = tcp.dial(&setting.address, &cx).await.unwrap();
        assert_eq!(ip(&dialled), NEW.parse::<IpAddr>().unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_hangs_is_given_up_and_others_ask_again() {
    let (setting, budget) = (setting(), Budget::new(4));
    let resource = setting.resource(&budget);
    resource.get().await.unwrap().close();
    setting.script.say(Answer::Hangs);
    resource.get().await.unwrap().close();
    assert_at_rest(&budget, 0); // it needs no slot
    let asked = setting.script.asked();
    resource.get().await.unwrap().close();
    assert_eq!(setting.script.asked(), asked);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_at_rest(&budget, 0);
    resource.get().await.unwrap().close();
    assert!(setting.script.asked() > asked);
}

#[tokio::test(start_paused = true)]
async fn slow_lookups_cost_nobody_a_connection_and_are_few() {
    let (setting, budget) = (setting(), Budget::new(2));
    let addresses: Vec<_> = (0..6).map(|n| Address::from((format!("name{n}.test"), setting.port))).collect();
    let cx = DialContext::detached();
    for address in &addresses {
        setting.tcp.dial(address, &cx).await.unwrap();
    }
    let idle = fakes("a", &budget, &Arc::default());
    idle.get().await.unwrap().put();
    setting.script.say(Answer::Hangs);
    for address in &addresses {
        let resource = ConnResource::builder(address, setting.tcp.clone()).budget(&budget).build();
        resource.get().await.unwrap().close();
    }
    assert_eq!(budget.stats().evicted, 0);
    let asked = setting.script.asked();
    for address in &addresses {
        setting.tcp.dial(address, &DialContext::detached()).await.unwrap();
    }
    assert_eq!(setting.script.asked(), asked, "a resolver that is slow is not asked again so soon");
    tokio::time::sleep(Duration::from_secs(31)).await;
    setting.tcp.dial(&addresses[5], &cx).await.unwrap();
    assert_eq!(setting.script.asked(), asked + 1);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_has_its_answer_and_goes_on_is_counted_beside_its_dial() {
    for said in [Answer::Fails, Answer::Ips(vec![OLD.parse().unwrap()])] {
        let (setting, budget) = (setting(), Budget::new(2));
        let resource = setting.resource(&budget);
        resource.get().await.unwrap().close();
        setting.script.say(Answer::Leaves(Box::new(said)));
        let conn = resource.get().await.unwrap();
        assert_eq!((budget.stats().in_use, budget.stats().held), (1, 1));
        assert_eq!(setting.script.end_lookups(), 1);
        assert_eq!((budget.stats().in_use, budget.stats().held), (1, 0));
        let mut get = resource.get();
        assert!(poll(&mut get).is_pending());
        settle().await;
        assert!(poll(&mut get).is_pending(), "no slot for it: it is waited for");
        assert_eq!(setting.script.end_lookups(), 1);
        get.await.unwrap().close();
        conn.close();
        setting.script.end_lookups();
        assert_at_rest(&budget, 0);
    }
}

#[test]
fn a_runtime_that_is_not_driven_keeps_no_other_from_resolving_in_the_background() {
    let current = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (left, driven) = (current(), current());
    let hanging = Script::new(Answer::Hangs);
    let tcp = Tcp::default().resolver(Arc::clone(&hanging));
    left.block_on(async {
        for n in 0..8 {
            tokio::spawn(tcp.watch(&Address::from((format!("name{n}.test"), 1))).unwrap());
        }
        settle().await;
    });
    assert_eq!(hanging.asked(), 4, "so many at a time");
    let setting = setting();
    driven.block_on(async {
        let mut watch = setting.watch();
        assert!(poll(&mut watch).is_ready(), "its first answer");
    });
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_resolvers_error_is_the_dials() {
    let setting = setting();
    for (answer, kind) in [
        (Answer::Fails, ErrorKind::Other),
        (Answer::Ips(vec![]), ErrorKind::NotFound),
        (Answer::NoSuchName, ErrorKind::NotFound),
    ] {
        setting.script.say(answer);
        let error = setting.tcp.dial(&setting.address, &DialContext::detached()).await.unwrap_err();
        assert_eq!(error.io_kind(), Some(kind), "{error}");
    }
}

#[tokio::test]
async fn a_lookup_without_descriptor_is_told_to_the_pool() {
    let (setting, budget) = (setting(), Budget::new(10));
    let resource = setting.resource(&budget);
    let idle = resource.get().await.unwrap();
    setting.script.say(Answer::Error(rustix::io::Errno::MFILE.raw_os_error()));
    let mut get = resource.get().fresh();
    assert!(poll(&mut get).is_pending(), "it waits for a slot, and does not go on with the last answer");
    assert!(budget.stats().emfile >= 1);
    setting.script.say_ips(&[OLD]);
    idle.close();
    get.await.unwrap().close();
}

#[tokio::test]
async fn a_lookup_that_cannot_be_cancelled_keeps_the_slot_of_its_dial() {
    let (setting, budget) = (setting(), Budget::new(1));
    setting.script.say(Answer::Blocks);
    let resource = setting.resource(&budget);
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    assert_eq!(budget.stats().dialing, 1);
    drop(get);
    assert!(budget.try_acquire().is_none());
    assert_eq!(setting.script.end_lookups(), 1);
    assert_at_rest(&budget, 0);
    assert!(budget.try_acquire().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_goes_on_without_its_lookup_needs_a_slot_for_it() {
    let (setting, budget) = (setting(), Budget::new(2));
    let resource = setting.resource(&budget);
    resource.get().await.unwrap().close();
    setting.script.say(Answer::Blocks);

    let conn = resource.get().await.unwrap();
    assert_eq!((budget.stats().in_use, budget.stats().held), (1, 1));
    assert_eq!(setting.script.end_lookups(), 1);
    settle().await;
    assert_eq!((budget.stats().in_use, budget.stats().held), (1, 0));

    let addresses: Vec<_> = (0..5).map(|n| Address::from((format!("name{n}.test"), setting.port))).collect();
    setting.script.say_ips(&[OLD]);
    for address in &addresses {
        setting.tcp.dial(address, &DialContext::detached()).await.unwrap();
    }
    setting.script.say(Answer::Blocks);
    for (n, address) in addresses.iter().enumerate() {
        let resource = ConnResource::builder(address, setting.tcp.clone()).budget(&budget).build();
        match resource.get().await {
            Ok(conn) if n < 4 => conn.close(),
            Err(GetError::DialTimeout { .. }) if n == 4 => {}
            other => panic!("no slot, but four places: {n}: {other:?}"),
        }
    }
    setting.script.end_lookups();
    conn.close();
    settle().await;
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn others_dial_a_name_while_a_dial_waits_for_what_cannot_be_cancelled() {
    let (setting, budget) = (setting(), Budget::new(2));
    let cx = DialContext::detached();
    let addresses: Vec<_> = (0..4).map(|n| Address::from((format!("name{n}.test"), setting.port))).collect();
    for address in addresses.iter().chain([&setting.address]) {
        setting.tcp.dial(address, &cx).await.unwrap();
    }
    let resources =
        addresses.iter().map(|at| ConnResource::builder(at, setting.tcp.clone()).budget(&budget).build());
    setting.script.say(Answer::Blocks);
    let taken = budget.acquire().await.unwrap();
    for resource in resources {
        resource.get().await.unwrap().close();
    }
    let resource = setting.resource(&budget);
    let mut waits = resource.get();
    let time = Duration::from_millis(1810);
    assert!(tokio::time::timeout(time, &mut waits).await.is_err(), "no slot, and no place");
    drop(taken);
    assert!(poll(&mut waits).is_pending());
    let asked = setting.script.asked();
    setting.resource(&budget).get().await.unwrap().close();
    assert_eq!(setting.script.asked(), asked);
    drop(waits);
    setting.script.end_lookups();
    settle().await;
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_gone_is_not_dialled_because_the_resolver_fails_since() {
    let setting = setting();
    let cx = DialContext::detached();
    setting.dial().await;
    setting.script.say(Answer::NoSuchName);
    setting.tcp.dial(&setting.address, &cx).await.unwrap_err();
    setting.script.say(Answer::Fails);
    let error = setting.tcp.dial(&setting.address, &cx).await.unwrap_err();
    assert!(!error.is_permanent(), "{error}");
    setting.script.say_ips(&[OLD]);
    setting.dial().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_one_family_leaves_its_connections_alone_for_a_refresh() {
    let (_listeners, port) = listen(&["::1", OLD]);
    let script = Script::ips(&["::1", OLD]);
    let tcp = Tcp::default().resolver(Arc::clone(&script));
    let address = Address::from(("peers.test", port));
    let stream = tcp.dial(&address, &DialContext::detached()).await.unwrap();
    assert!(ip(&stream).is_ipv6());
    script.say_ips(&[OLD]);
    let mut watch = tcp.watch(&address).unwrap();
    assert!(is_ready_within(&mut watch, REFRESH).await);
    assert!(tcp.is_current(&address, &stream), "the question for it may have been lost");
    let mut watch = tcp.watch(&address).unwrap();
    assert!(is_ready_within(&mut watch, REFRESH).await);
    assert!(!tcp.is_current(&address, &stream));
}

#[test]
fn a_lookup_that_has_not_begun_keeps_no_slot_of_a_dial_that_is_given_up() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (busy, end) = std::sync::mpsc::channel::<()>();
        let blocked = tokio::task::spawn_blocking(move || end.recv());
        let budget = Budget::new(1);
        let name = ConnResource::builder(("name.invalid", 1), Tcp::default()).budget(&budget).build();
        let mut get = name.get();
        assert!(poll(&mut get).is_pending());
        assert_eq!(budget.stats().dialing, 1);
        drop(get);
        assert_at_rest(&budget, 0);
        assert!(budget.try_acquire().is_some());
        drop(busy);
        blocked.await.unwrap().unwrap_err();
    });
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_its_dial_went_on_without_is_counted_once_when_that_fails() {
    let (setting, budget) = (setting(), Budget::new(4));
    setting.dial().await;
    setting.script.say(Answer::Blocks);
    let nobody = ConnResource::builder(("peers.test", 1), setting.tcp.clone()).budget(&budget).build();
    assert!(matches!(nobody.get().await, Err(GetError::Dial { .. })));
    let stats = budget.stats();
    assert_eq!((stats.held, stats.closing, stats.dialing), (1, 0, 0));
    assert_eq!(setting.script.end_lookups(), 1);
    settle().await;
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn addresses_of_sockets_are_never_resolved_nor_watched() {
    let (_listeners, port) = listen(&[OLD]);
    let script = Script::new(Answer::Fails);
    let tcp = Tcp::default().resolver(Arc::clone(&script));
    let address = Address::from((OLD, port));
    let stream = tcp.dial(&address, &DialContext::detached()).await.unwrap();
    assert!(tcp.watch(&address).is_none() && tcp.is_current(&address, &stream));
    assert_eq!(script.asked(), 0);
}

#[tokio::test]
async fn a_name_that_is_not_to_be_refreshed_is_not_watched() {
    let setting = setting();
    assert!(setting.tcp.clone().refresh(None).watch(&setting.address).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_refresh_time_can_be_set() {
    let setting = setting();
    let tcp = setting.tcp.clone().refresh(Duration::from_secs(3));
    tcp.dial(&setting.address, &DialContext::detached()).await.unwrap();
    let mut watch = tcp.watch(&setting.address).unwrap();
    setting.script.say_ips(&[NEW]);
    assert!(is_ready_within(&mut watch, Duration::from_secs(3)).await);
}

#[tokio::test]
async fn bad_names_fail_for_good_and_are_not_asked_for() {
    let script = Script::ips(&[OLD]);
    let tcp = Tcp::default().resolver(Arc::clone(&script));
    let long = format!("{}:80", "a".repeat(64));
    for bad in
        ["", ":80", "name", "two words:80", "http://name:80", "name:99999", "a..b:80", "[name]:80", &long]
    {
        let address = Address::from(bad);
        let error = tcp.dial(&address, &DialContext::detached()).await.unwrap_err();
        assert!(error.is_permanent(), "{bad:?}: {error}");
        assert!(tcp.watch(&address).is_none());
    }
    assert_eq!(script.asked(), 0);
}

#[tokio::test]
async fn the_systems_resolver_knows_localhost() {
    let (_listeners, port) = listen(&["127.0.0.1"]);
    let budget = Budget::new(1);
    let resource = ConnResource::builder(("localhost", port), Tcp::default()).budget(&budget).build();
    let conn = resource.get().await.unwrap();
    assert_eq!((sockets_to_port(port), budget.stats().in_use, budget.stats().held), (1, 1, 0));
    conn.close();
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn dialers_and_their_futures_go_to_any_thread() {
    fn sent<T: Send + 'static>(_: &T) {}
    fn shared<T: Send + Sync + Clone + std::fmt::Debug>(_: &T) {}
    let setting = setting();
    shared(&setting.tcp);
    sent(&setting.watch());
    let cx = DialContext::detached();
    fn is_send<F: Future + Send>(future: F) -> F {
        future
    }
    is_send(setting.tcp.dial(&setting.address, &cx)).await.unwrap();
    assert!(format!("{:?}", setting.tcp).contains("Script"));
}

#[tokio::test(start_paused = true)]
async fn connections_that_lead_elsewhere_go_when_they_are_idle() {
    let (setting, budget) = (setting(), Budget::new(10));
    let resource = setting.resource(&budget);
    let (idle, used) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    idle.put();
    setting.script.say_ips(&[NEW]);
    // Who watches a name leaves 10 ms before asking again, however soon that is due.
    tokio::time::sleep(REFRESH + Duration::from_millis(20)).await;
    settle().await;
    assert_eq!((budget.stats().idle, budget.stats().in_use), (0, 1), "the idle one is gone");
    assert_eq!(sockets_to_port(setting.port), 1, "the one in use is left alone");
    assert_eq!(ip(&used), OLD.parse::<IpAddr>().unwrap());
    let after = resource.get().await.unwrap();
    assert_eq!(ip(&after), NEW.parse::<IpAddr>().unwrap());
    after.put();
    used.put();
    assert_eq!((budget.stats().idle, sockets_to_port(setting.port)), (1, 1), "and closed at its put");
}

/// Between a dialer's panic and the next try.
const PAUSE: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_resolver_that_panics_ends_no_watching_and_does_not_spin() {
    let (setting, budget) = (setting(), Budget::new(10));
    let resource = setting.resource(&budget);
    let (idle, used) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    idle.put();
    setting.script.say(Answer::Panics);
    let asked = setting.script.asked();
    tokio::time::sleep(REFRESH + PAUSE / 2).await;
    let panics = budget.stats().panics;
    assert_eq!(setting.script.asked() as u64 - asked as u64, panics);
    assert!((1..=2).contains(&panics), "{panics}");
    tokio::time::sleep(REFRESH).await;
    assert_eq!(budget.stats().panics, panics + 3, "once in each pause");
    assert_eq!(budget.stats().idle, 1, "and a panic says nothing about connections");
    setting.script.say_ips(&[NEW]);
    tokio::time::sleep(PAUSE).await;
    settle().await;
    assert_eq!((budget.stats().idle, budget.stats().in_use), (0, 1), "the idle one is gone");
    used.put();
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn watching_goes_on_after_a_panic_wherever_it_was() {
    let (budget, watches) = (Budget::new(2), Arc::new(AtomicUsize::new(0)));
    let (begun, asked) = (Arc::clone(&watches), Arc::clone(&watches));
    // Panics in each part of watching, one after the other; then the address has moved.
    let clumsy = Moving {
        watch: move || -> Option<Watch> {
            match begun.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("in watch()"),
                1 => Some(Box::pin(async { panic!("in the watch") })),
                _ => Some(Box::pin(std::future::ready(()))),
            }
        },
        is_current: move || {
            // Each watch begins with the question.
            let watches = asked.load(Ordering::SeqCst);
            assert_ne!(watches, 3, "in is_current()");
            watches < 4
        },
    };
    let resource = ConnResource::builder("moves", clumsy).budget(&budget).build();
    let used = resource.get().await.unwrap();
    resource.get().fresh().await.unwrap().put();
    for panics in 1..=2 {
        settle().await;
        assert_eq!((budget.stats().panics, watches.load(Ordering::SeqCst)), (panics, panics as usize));
        tokio::time::sleep(PAUSE).await;
    }
    settle().await;
    assert_eq!((budget.stats().idle, budget.stats().panics), (0, 3), "what it was asked about is closed");
    tokio::time::sleep(PAUSE).await;
    used.put();
    assert_at_rest(&budget, 0);
}
