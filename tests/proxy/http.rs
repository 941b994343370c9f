//! CONNECT, as a proxy hears and says it.

use std::io::ErrorKind;

use tokio::io::AsyncReadExt;

use crate::{ESTABLISHED, assert_echoes, connect, dial, hears, proxy, refusal, saying, says};

#[tokio::test]
async fn asks_for_the_destination_with_the_headers_given() {
    let cases = [
        ("example.org:443", "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n"),
        ("127.0.0.1:80", "CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n"),
        ("[::1]:80", "CONNECT [::1]:80 HTTP/1.1\r\nHost: [::1]:80\r\n"),
    ];
    for (destination, request) in cases {
        let fields =
            "User-Agent: scraper\r\nX: \r\nProxy-Authorization: Basic c2NyYXBlcjpodW50ZXIyOuKCrA==\r\n\r\n";
        let (address, played) = proxy(vec![hears([request, fields].concat()), says(ESTABLISHED)]).await;
        let dialer = connect(address)
            .basic_auth("scraper", "hunter2:€")
            .header("User-Agent", "scraper")
            .header("X", "");
        assert_echoes(&mut dial(&dialer, destination).await.unwrap()).await;
        played.await.unwrap();

        let (address, played) = proxy(vec![hears([request, "\r\n"].concat()), says(ESTABLISHED)]).await;
        assert_echoes(&mut dial(&connect(address), destination).await.unwrap()).await;
        played.await.unwrap();
    }
}

#[tokio::test]
async fn leaves_the_first_bytes_of_the_destination_to_the_connection() {
    for header in [
        ESTABLISHED,
        "HTTP/1.0 200 OK\nVia: x\n\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", // of no meaning in such an answer
        "HTTP/1.1 200 OK\r\nVia: x,\r\n y\r\n\r\n",
        &format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(300)),
    ] {
        let proxy = saying([header, "\r\n\r\n220 ready"].concat()).await;
        let mut first = String::new();
        dial(&connect(proxy), "h:80").await.unwrap().read_to_string(&mut first).await.unwrap();
        assert_eq!(first, "\r\n\r\n220 ready", "after {header}");
    }
}

#[tokio::test]
async fn statuses_are_told_in_words() {
    let cases = [
        (101, "status 101", false),
        (302, "status 302", false),
        (400, "bad request", true),
        (403, "forbidden", true),
        (404, "not found", false),
        (405, "method not allowed", true),
        (407, "proxy authentication required, and there is no user given", true),
        (429, "too many requests", false),
        (500, "internal server error", false),
        (501, "not implemented", true),
        (502, "bad gateway", false),
        (503, "service unavailable", false),
        (504, "gateway timeout", false),
        (999, "status 999", false),
    ];
    for (status, words, permanent) in cases {
        // Its own words may repeat what it was sent.
        let answer = format!("HTTP/1.1 {status} hunter2\r\nContent-Length: 7\r\n\r\nhunter2");
        let error = refusal(connect, answer).await;
        let text = error.to_string();
        assert!(text.contains(words) && text.contains("asking it to connect"), "{error}");
        assert_eq!(error.is_permanent(), permanent, "{error}");
    }
    let error = refusal(
        |proxy| connect(proxy).basic_auth("scraper", "hunter2"),
        "HTTP/1.1 407 c2NyYXBlcjpodW50ZXIy\r\nProxy-Authenticate: Basic\r\n\r\n",
    )
    .await;
    assert!(error.is_permanent() && error.to_string().contains("refuses the user"), "{error}");
    assert!(!error.to_string().contains("c2Ny"), "{error}");
    assert_eq!(refusal(connect, "HTTP/1.1 504 x\r\n\r\n").await.io_kind(), Some(ErrorKind::TimedOut));
}

#[tokio::test]
async fn proxies_that_talk_nonsense_are_told() {
    let endless = |line: &str| ["HTTP/1.1 200 OK\r\n", &line.repeat(20_000 / line.len())].concat();
    let cases = [
        ("\x05\x00 and more of it".to_owned(), "no HTTP proxy"),
        ("220 mail.example ESMTP\r\n".to_owned(), "no HTTP proxy"),
        ("HTTP/2.0 200 OK\r\n\r\n".to_owned(), "no HTTP proxy"),
        ("HTTP/1.1 2000 OK\r\n\r\n".to_owned(), "no HTTP"),
        ("HTTP/1.1 20x OK\r\n\r\n".to_owned(), "no HTTP"),
        ("HTTP/1.1 200 OK\r\nno field\r\n\r\n".to_owned(), "no HTTP"),
        (endless("x"), "more than 16384 bytes"),
        (endless("X: y\r\n"), "more than 16384 bytes"),
        ("HTTP/1.1 100 Continue\r\n\r\n".repeat(1000), "more than 16384 bytes"),
    ];
    for (answer, words) in cases {
        let error = refusal(connect, answer).await;
        assert!(error.to_string().contains(words) && !error.is_permanent(), "{error}");
    }
}

#[tokio::test]
async fn proxies_that_hang_up_at_any_byte_are_told() {
    let answer = "HTTP/1.1 200 OK\r\nVia: 1.1 proxy\r\n\r\n";
    for length in 0..answer.len() {
        let error = refusal(connect, &answer[..length]).await;
        let text = error.to_string();
        assert!(text.ends_with("asking it to connect: the proxy closed the connection"), "{length}: {error}");
        assert_eq!((error.io_kind(), error.is_permanent()), (Some(ErrorKind::UnexpectedEof), false));
    }
    dial(&connect(saying(answer).await), "h:80").await.unwrap();
}

#[tokio::test]
async fn sends_no_header_that_would_be_two() {
    let proxy = connect("127.0.0.1:1");
    let cases = [
        (proxy.clone().header("X", "hunter2\r\nY: z"), "header field X"),
        (proxy.clone().header("X", "hunter2\0"), "header field X"),
        (proxy.clone().header("X: y\r\nZ", "hunter2"), "no name"),
        (proxy.clone().header("", "hunter2"), "no name"),
        (proxy.clone().header("host", "hunter2"), "not to be given"),
        (proxy.clone().header("Content-Length", "hunter2"), "not to be given"),
        (proxy.clone().basic_auth("a:b", "hunter2"), "colon"),
    ];
    for (dialer, words) in cases {
        let error = dial(&dialer, "h:80").await.unwrap_err();
        assert!(error.is_permanent() && error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
