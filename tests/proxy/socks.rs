//! SOCKS5, as a proxy hears and says it.

use std::io::ErrorKind;

use tokio::io::AsyncReadExt;

use crate::{DONE, GREETING, assert_echoes, dial, hears, proxy, refusal, saying, says, socks};

#[tokio::test]
async fn names_go_to_the_proxy_as_names_and_addresses_as_addresses() {
    let cases: [(&str, &[u8]); 4] = [
        ("example.org:443", b"\x05\x01\x00\x03\x0bexample.org\x01\xbb"),
        ("127.0.0.1:80", &[5, 1, 0, 1, 127, 0, 0, 1, 0, 80]),
        ("[::1]:65535", &[5, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 255, 255]),
        ("localhost.:0", b"\x05\x01\x00\x03\x0alocalhost.\x00\x00"),
    ];
    for (destination, request) in cases {
        let (proxy, played) = proxy(vec![hears(GREETING), says([5, 0]), hears(request), says(DONE)]).await;
        let mut conn = dial(&socks(proxy), destination).await.unwrap();
        assert_echoes(&mut conn).await;
        drop(conn);
        played.await.unwrap();
    }
}

#[tokio::test]
async fn authenticates_if_it_can_and_is_asked_to() {
    let greeting = hears([5, 2, 0, 2]);
    let request = || hears(b"\x05\x01\x00\x03\x01h\x00\x50");
    let log_in = hears(b"\x01\x07scraper\x07hunter2");
    let asked = vec![greeting.clone(), says([5, 2]), log_in, says([1, 0]), request(), says(DONE)];
    let not_asked = vec![greeting, says([5, 0]), request(), says(DONE)];
    for acts in [asked, not_asked] {
        let (proxy, played) = proxy(acts).await;
        let mut conn = dial(&socks(proxy).auth("scraper", "hunter2"), "h:80").await.unwrap();
        assert_echoes(&mut conn).await;
        drop(conn);
        played.await.unwrap();
    }
}

#[tokio::test]
async fn leaves_the_first_bytes_of_the_destination_to_the_connection() {
    let bounds: [&[u8]; 4] = [
        &[1, 127, 0, 0, 1, 0, 80],
        &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80],
        b"\x03\x04host\x00\x50",
        &[&[3, 255][..], &[0xff; 255], &[0, 80]].concat(), // a name that is none: nobody needs it
    ];
    for bound in bounds {
        let answers = [&[5, 0, 5, 0, 0], bound, b"220 ready"].concat();
        let mut conn = dial(&socks(saying(answers).await), "h:80").await.unwrap();
        let mut first = Vec::new();
        conn.read_to_end(&mut first).await.unwrap();
        assert_eq!(first, b"220 ready");
    }
}

#[tokio::test]
async fn replies_are_told_in_words() {
    let cases = [
        (1, "general failure", ErrorKind::Other, false),
        (2, "rules", ErrorKind::PermissionDenied, true),
        (3, "network unreachable", ErrorKind::NetworkUnreachable, false),
        (4, "host unreachable", ErrorKind::HostUnreachable, false),
        (5, "connection refused", ErrorKind::ConnectionRefused, false),
        (6, "TTL", ErrorKind::TimedOut, false),
        (7, "command", ErrorKind::Unsupported, true),
        (8, "kind of address", ErrorKind::Unsupported, true),
        (9, "reply 9", ErrorKind::Other, false),
        (255, "reply 255", ErrorKind::Other, false),
    ];
    for (reply, words, kind, permanent) in cases {
        // Some proxies say no more than this much.
        for tail in [&[][..], &[0, 1, 0, 0, 0, 0, 0, 0]] {
            let error = refusal(socks, [&[5, 0, 5, reply], tail].concat()).await;
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.to_string().contains("asking it to connect"), "{error}");
            assert_eq!((error.io_kind(), error.is_permanent()), (Some(kind), permanent), "{error}");
        }
    }
}

#[tokio::test]
async fn authentication_that_is_refused_or_missing_is_permanent() {
    let with_user = |proxy| socks(proxy).auth("scraper", "hunter2");
    let errors = [
        (refusal(socks, [5, 0xff]).await, "no user given"),
        (refusal(socks, [5, 2]).await, "no user given"),
        (refusal(with_user, [5, 0xff]).await, "takes no user and password"),
        (refusal(with_user, [5, 2, 1, 1]).await, "refuses the user or the password (status 1)"),
        (refusal(with_user, [5, 2, 5, 255]).await, "refuses the user or the password (status 255)"),
    ];
    for (error, words) in errors {
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.is_permanent(), "{error}");
        assert_eq!(error.io_kind(), Some(ErrorKind::PermissionDenied));
    }
}

#[tokio::test]
async fn proxies_that_talk_nonsense_are_told() {
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let cases = [
        (http, "no SOCKS5 proxy: it answers 0x48"),
        (vec![4, 0], "no SOCKS5 proxy: it answers 0x04"),
        (vec![5, 1], "chose method 0x01"),
        (vec![5, 0, 4, 0, 0, 1], "version 0x04"),
        (vec![5, 0, 5, 0, 0, 9, 0, 0], "kind 0x09"),
    ];
    for (answer, words) in cases {
        let error = refusal(socks, answer).await;
        assert!(error.to_string().contains(words) && !error.is_permanent(), "{error}");
    }
}

#[tokio::test]
async fn proxies_that_hang_up_at_any_byte_are_told() {
    let answers = [&[5, 2, 1, 0, 5, 0, 0, 3, 4][..], b"host", &[0, 80]].concat();
    for length in 0..answers.len() {
        let error = refusal(|proxy| socks(proxy).auth("scraper", "hunter2"), &answers[..length]).await;
        let step = match length {
            0..2 => "agreeing on how to authenticate",
            2..4 => "authenticating",
            _ => "asking it to connect",
        };
        assert!(error.to_string().ends_with(&format!("{step}: the proxy closed the connection")), "{error}");
        assert_eq!((error.io_kind(), error.is_permanent()), (Some(ErrorKind::UnexpectedEof), false));
    }
    dial(&socks(saying(answers).await).auth("scraper", "hunter2"), "h:80").await.unwrap();
}

#[tokio::test]
async fn takes_users_and_passwords_as_long_as_the_protocol_does() {
    let (longest, longer) = ("x".repeat(255), "x".repeat(256));
    let log_in = [&[1, 255][..], longest.as_bytes(), &[255], longest.as_bytes()].concat();
    let acts =
        vec![hears([5, 2, 0, 2]), says([5, 2]), hears(log_in), says([1, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0])];
    let (proxy, _played) = proxy(acts).await;
    dial(&socks(proxy).auth(&longest, &longest), "h:80").await.unwrap();
    for dialer in [socks("127.0.0.1:1").auth(&longer, "x"), socks("127.0.0.1:1").auth("x", &longer)] {
        let error = dial(&dialer, "h:80").await.unwrap_err();
        assert!(error.is_permanent() && error.to_string().contains("256 bytes"), "{error}");
        assert!(!error.to_string().contains("xx"), "{error}");
    }
}
