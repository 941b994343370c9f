//! Whatever a proxy says: a dial ends, and has read as many bytes as were the proxy's.

use std::io::Cursor;

use fdpool::dial::{HttpConnect, Socks5};
use futures::executor::block_on;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{Join, Sink, join, sink};

use crate::{dial, dial_from};

type Pipe = Join<Cursor<Vec<u8>>, Sink>;

/// A connection to a proxy that says this and hangs up.
fn said(bytes: &[u8]) -> impl fdpool::Dial<Conn = Pipe> + use<> {
    let bytes = bytes.to_vec();
    dial_from(move |_| join(Cursor::new(bytes.clone()), sink()))
}

fn consumed(pipe: Pipe) -> usize {
    pipe.into_inner().0.position().try_into().unwrap()
}

/// How long the answer of a proxy is that lets through, by RFC 1928.
fn length_of_success(bytes: &[u8]) -> Option<usize> {
    let (ways, bytes) = match bytes {
        [5, 0, rest @ ..] => (2, rest),
        [5, 2, _, 0, rest @ ..] => (4, rest),
        _ => return None,
    };
    let reply = match bytes {
        [5, 0, _, 1, ..] => 4 + 4 + 2,
        [5, 0, _, 4, ..] => 4 + 16 + 2,
        [5, 0, _, 3, length, ..] => 5 + usize::from(*length) + 2,
        _ => return None,
    };
    (bytes.len() >= reply).then_some(ways + reply)
}

/// How long the header is, its blank line included.
fn length_of_header(bytes: &[u8]) -> Option<usize> {
    (1..=bytes.len())
        .find(|&length| bytes[..length].ends_with(b"\n\n") || bytes[..length].ends_with(b"\n\r\n"))
}

fn bytes_of_socks() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => 0..6_u8, 1 => any::<u8>()];
    let begin = prop_oneof![Just(vec![5, 0, 5, 0, 0]), Just(vec![5, 2, 1, 0, 5, 0, 0]), Just(vec![])];
    (begin, vec(byte, 0..40)).prop_map(|(begin, rest)| [begin, rest].concat())
}

fn bytes_of_http() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"X: y".to_vec()),
        vec(any::<u8>(), 0..4),
    ];
    let begin = prop_oneof![4 => Just("HTTP/1.1 200 OK\r\n"), 1 => Just("HTTP/1.0 200"), 1 => Just("")];
    (begin, vec(piece, 0..12)).prop_map(|(begin, rest)| [begin.as_bytes(), &rest.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_socks_proxy_is_taken_at_its_word_and_no_further(bytes in bytes_of_socks()) {
        let dialled = block_on(dial(&Socks5::new(said(&bytes), "p").auth("u", "p"), "h:80"));
        prop_assert_eq!(dialled.ok().map(consumed), length_of_success(&bytes));
    }

    #[test]
    fn an_http_proxy_is_taken_at_its_word_and_no_further(bytes in bytes_of_http()) {
        match block_on(dial(&HttpConnect::new(said(&bytes), "p"), "h:80")) {
            Ok(pipe) => prop_assert_eq!(Some(consumed(pipe)), length_of_header(&bytes)),
            Err(error) => prop_assert!(!error.is_permanent(), "{}", error),
        }
    }
}
