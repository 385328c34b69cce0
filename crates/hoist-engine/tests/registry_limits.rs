//! Nothing waits for ever: each stage at which a server can stall has its limit.

mod registry_support;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use hoist_engine::reference::Repo;
use hoist_engine::registry::{Client, ClientConfig, RegistryError};
use hoist_format::digest::Digest;
use registry_support::*;

fn blob() -> (Vec<u8>, Digest) {
    let blob = pattern(300_000);
    let digest = Digest::of(&blob);
    (blob, digest)
}

#[tokio::test]
async fn a_server_that_hangs_costs_no_more_than_the_time_limits() {
    let (data, digest) = blob();
    let mut config = config();
    config.timeouts.first_byte = Duration::from_millis(50);
    config.timeouts.idle = Duration::from_millis(50);
    config.retry.attempts = 3;
    let mute = BadServer::start(|_| Reply::Hang(Vec::new())).await;
    let client = Client::new(config.clone());
    let error = all(&client, &mute.repo(), &digest, 0..10).await.unwrap_err();
    assert!(matches!(error, RegistryError::TimedOut { what: "answer", .. }), "{error}");

    // Stalls in the middle, then serves the rest.
    let body = data.clone();
    let stalling = BadServer::start(move |seen| match part(seen, &body) {
        Reply::Raw(bytes) if seen.number == 0 => Reply::Hang(bytes[..bytes.len() - 3].to_vec()),
        whole => whole,
    })
    .await;
    config.timeouts.first_byte = Duration::from_secs(20);
    let client = Client::new(config);
    assert_eq!(all(&client, &stalling.repo(), &digest, 0..10).await.unwrap(), data[..10]);
    assert_eq!(stalling.log()[1].range(), Some((7, 9)));
}

/// A byte now and then is never silence, and never an end.
#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    let (_, digest) = blob();
    let mut config = config();
    config.timeouts.window = Duration::from_millis(100);
    config.retry.attempts = 2;
    let head = "HTTP/1.1 206 X\r\ncontent-length: 300000\r\ncontent-range: bytes 0-299999/300000\r\n\r\n";
    let server = BadServer::start(move |seen| {
        let whole = "HTTP/1.1 200 X\r\ncontent-length: 300000\r\n\r\n";
        Reply::Trickle(if seen.range().is_some() { head } else { whole }.into())
    })
    .await;
    let client = Client::new(config);
    let named = format!("{}:tag", server.repo()).parse().unwrap();
    for error in [
        client.manifest(&named).await.unwrap_err(),
        client.blob(&server.repo(), &digest, None).await.unwrap_err(),
        all(&client, &server.repo(), &digest, 0..300_000).await.unwrap_err(),
    ] {
        // What came before counts, so the second part of a blob is another than asked for.
        let trickled = matches!(error, RegistryError::TimedOut { what: "send more than a trickle", .. });
        assert!(trickled || matches!(error, RegistryError::BadAnswer { .. }), "{error}");
    }
    assert_eq!(server.log().len(), 6, "each asked twice");
}

/// Connections that break after a little each bring all of it in the end.
#[tokio::test]
async fn tries_that_bring_something_are_not_counted_against_the_server() {
    let (data, digest) = blob();
    let body = data.clone();
    let server = BadServer::start(move |seen| {
        let Reply::Raw(whole) = part(seen, &body) else { unreachable!() };
        let head = whole.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        Reply::Raw(whole[..whole.len().min(head + 20_000)].to_vec())
    })
    .await;
    let mut config = config();
    config.retry.attempts = 2;
    let client = Client::new(config);
    assert!(all(&client, &server.repo(), &digest, 0..300_000).await.unwrap() == data);
    // A document is gone on with as well.
    assert!(client.blob(&server.repo(), &digest, Some(300_000)).await.unwrap() == data);
    assert!(server.log().len() >= 30, "{}", server.log().len());
}

/// A server that sends a byte of what is asked for, each time without a failure, is given up.
#[tokio::test]
async fn parts_of_a_byte_each_do_not_go_on_for_ever() {
    let (data, digest) = blob();
    let server = BadServer::start(move |seen| {
        let (first, _) = seen.range().unwrap();
        let range = format!("bytes {first}-{first}/{}", data.len());
        reply(206, &[("content-range", &range)], &data[first..=first])
    })
    .await;
    let mut config = config();
    config.timeouts.window = Duration::from_millis(200);
    config.timeouts.slowest = 100_000;
    let error = all(&Client::new(config), &server.repo(), &digest, 0..300_000).await.unwrap_err();
    assert!(matches!(error, RegistryError::TimedOut { what: "send more than a trickle", .. }), "{error}");
}

/// What cannot be read is no matter of the network.
#[tokio::test]
async fn an_answer_that_is_not_http_s_is_told_as_such() {
    let huge = format!("HTTP/1.1 200 X\r\nx: {}\r\n\r\n", "y".repeat(2 << 20));
    for (answer, why) in [(huge, "too large"), ("SSH-2.0-x\r\n\r\n".into(), "no HTTP answer")] {
        let server = BadServer::start(move |_| Reply::Raw(answer.clone().into_bytes())).await;
        let mut config = config();
        config.retry.attempts = 1;
        let error = Client::new(config).blob(&server.repo(), &blob().1, None).await.unwrap_err();
        assert!(matches!(error, RegistryError::BadAnswer { .. }), "{error}");
        assert!(error.to_string().contains(why) && !error.to_string().contains("cannot reach"), "{error}");
    }
}

/// A listener whose queue is full, so that the kernel drops what would open a connection.
#[tokio::test]
async fn a_connection_that_is_not_accepted_is_given_up() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    // The queue takes one more than it is told.
    while let Ok(Ok(open)) =
        tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        queued.push(open);
    }
    for plain in [true, false] {
        let error = stalled(&address.to_string(), plain).await;
        assert!(matches!(error, RegistryError::TimedOut { what: "accept a connection", .. }), "{error}");
    }
}

/// Accepted, and then no word: the TLS handshake never ends.
#[tokio::test]
async fn a_handshake_that_is_not_answered_is_given_up() {
    let server = BadServer::start(|_| Reply::Hang(Vec::new())).await;
    let error = stalled(&server.host, false).await;
    assert!(matches!(error, RegistryError::TimedOut { what: "accept a connection", .. }), "{error}");
}

async fn stalled(host: &str, plain: bool) -> RegistryError {
    let mut config = config();
    config.plain_http = Some(plain);
    config.timeouts.connect = Duration::from_millis(100);
    config.retry.attempts = 2;
    let client = Client::new(config);
    let repo = Repo { host: host.to_owned(), name: "team/app".into() };
    let error = client.blob(&repo, &blob().1, None).await.unwrap_err();
    assert_eq!((client.stats().requests(), client.stats().retries()), (2, 1));
    error
}

/// A token service that hangs holds up no more than the limits allow either.
#[tokio::test]
async fn a_token_service_that_hangs_is_given_up() {
    let server = BadServer::start(|seen| {
        if seen.path.starts_with("/token") {
            return Reply::Hang(Vec::new());
        }
        let challenge = format!("Bearer realm=\"http://{}/token\"", seen.header("host"));
        reply(401, &[("www-authenticate", &challenge)], b"")
    })
    .await;
    let mut config = config();
    config.timeouts.first_byte = Duration::from_millis(50);
    config.retry.attempts = 2;
    let error = Client::new(config).blob(&server.repo(), &blob().1, None).await.unwrap_err();
    assert!(matches!(error, RegistryError::TimedOut { what: "answer", .. }), "{error}");
    assert_eq!(server.count("/token"), 2);
}

/// The server's wish counts in both its forms, and no wish counts beyond the longest pause. A pause of our own would
/// be hours here, and so would the one that is wished for at last: that this test ends is what it shows.
#[tokio::test]
async fn a_wish_to_wait_is_obeyed_and_bounded() {
    let (data, digest) = blob();
    let body = data.clone();
    let server = BadServer::start(move |seen| match seen.number {
        0 => reply(429, &[("retry-after", "0")], b""),
        1 => reply(503, &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], b""),
        2 => {
            let now =
                [("date", "Tue, 29 Dec 2099 23:59:59 GMT"), ("retry-after", "Tue, 29 Dec 2099 23:59:59 GMT")];
            reply(503, &now, b"")
        }
        _ => part(seen, &body),
    })
    .await;
    let mut patient = config();
    patient.retry.base = Duration::from_secs(100_000);
    patient.retry.longest = Duration::from_secs(100_000);
    patient.retry.total = Duration::from_secs(1_000_000);
    let client = Client::new(patient);
    assert_eq!(all(&client, &server.repo(), &digest, 0..9).await.unwrap(), data[..9]);
    assert_eq!(server.log().len(), 4);

    for wish in ["86400", "99999999999999999999", "Tue, 29 Dec 2099 23:59:59 GMT"] {
        let busy = BadServer::start(move |_| reply(429, &[("retry-after", wish)], b"")).await;
        let mut hurried = config();
        hurried.retry.longest = Duration::from_millis(20);
        let error = Client::new(hurried).blob(&busy.repo(), &digest, None).await.unwrap_err();
        assert!(error.to_string().contains("rate limit"), "{error}");
        assert_eq!(busy.log().len(), 4);
    }
}

/// Whoever waits for a part of a blob does not wait as long as a server may be silent.
#[tokio::test]
async fn a_part_that_does_not_come_is_asked_for_a_second_time_beside_the_first() {
    let (data, digest) = blob();
    let mut config = config();
    config.timeouts.first_byte = Duration::from_secs(1000);
    config.timeouts.idle = Duration::from_secs(1000);
    config.timeouts.second = Duration::from_millis(50);
    // One hangs at once, one in the midst of a body.
    for begun in [0, 7] {
        let body = data.clone();
        let server = BadServer::start(move |seen| match (part(seen, &body), seen.number) {
            (Reply::Raw(_), 0) if begun == 0 => Reply::Hang(Vec::new()),
            (Reply::Raw(bytes), 0) => Reply::Hang(bytes[..bytes.len() - 10 + begun].to_vec()),
            (whole, _) => whole,
        })
        .await;
        let client = Client::new(config.clone());
        assert_eq!(all(&client, &server.repo(), &digest, 0..10).await.unwrap(), data[..10]);
        let asked: Vec<_> = server.log().iter().map(|seen| seen.range().unwrap()).collect();
        assert_eq!(asked, [(0, 9), (begun, 9)]);
    }
}

/// A server that is silent again and again is asked twice more and then waited for, as its limits say.
#[tokio::test]
async fn second_requests_are_bounded() {
    let (data, digest) = blob();
    let mut config = config();
    config.timeouts.first_byte = Duration::from_secs(1000);
    config.timeouts.idle = Duration::from_millis(500);
    config.timeouts.second = Duration::from_millis(50);
    config.retry.attempts = 1;
    // Each has a byte more, and then nothing.
    let server = BadServer::start(move |seen| match part(seen, &data) {
        Reply::Raw(bytes) => {
            let (first, last) = seen.range().unwrap();
            Reply::Hang(bytes[..bytes.len() - (last - first)].to_vec())
        }
        other => other,
    })
    .await;
    let error = all(&Client::new(config), &server.repo(), &digest, 0..10).await.unwrap_err();
    assert!(matches!(error, RegistryError::TimedOut { what: "send more", .. }), "{error}");
    assert_eq!(server.log().len(), 3);
}

/// Settings of one that never gives up waiting, but asks a second time soon.
fn patient() -> ClientConfig {
    let mut config = config();
    config.timeouts.first_byte = Duration::from_secs(1000);
    config.timeouts.idle = Duration::from_secs(1000);
    config.timeouts.second = Duration::from_millis(200);
    config
}

/// However many hang at once, each is asked for a second time when its turn comes.
#[tokio::test]
async fn many_that_hang_at_once_are_all_asked_for_a_second_time() {
    let (data, digest) = blob();
    let body = data.clone();
    let asked = Mutex::new(HashMap::new());
    // The first request for each part hangs.
    let server = BadServer::start(move |seen| {
        let times = *asked.lock().unwrap().entry(seen.range()).and_modify(|times| *times += 1).or_insert(1);
        if times == 1 { Reply::Hang(Vec::new()) } else { part(seen, &body) }
    })
    .await;
    let client = Client::new(patient());
    let parts: Vec<_> = (0..20_u64).map(|i| i * 1000..i * 1000 + 500).collect();
    let repo = server.repo();
    let fetched = join_all(parts.iter().map(|range| all(&client, &repo, &digest, range.clone()))).await;
    for (range, fetched) in parts.iter().zip(fetched) {
        assert!(fetched.unwrap() == data[range.start as usize..range.end as usize]);
    }
    // Where an answer's body is late once more, a third time.
    assert!((40..=60).contains(&server.log().len()), "{}", server.log().len());
}

/// A document that does not come is asked for a second time too, whole.
#[tokio::test]
async fn a_document_that_does_not_come_is_asked_for_a_second_time() {
    let data = pattern(1000);
    let digest = Digest::of(&data);
    for begun in [0, 100] {
        let body = data.clone();
        let server = BadServer::start(move |seen| match (reply(200, &[], &body), seen.number) {
            (Reply::Raw(_), 0) if begun == 0 => Reply::Hang(Vec::new()),
            (Reply::Raw(bytes), 0) => Reply::Hang(bytes[..bytes.len() - begun].to_vec()),
            (whole, _) => whole,
        })
        .await;
        let client = Client::new(patient());
        assert!(client.blob(&server.repo(), &digest, Some(1000)).await.unwrap() == data);
        assert_eq!(server.log().len(), 2);
    }
}

/// A token that expires while the first request hangs is renewed for the second.
#[tokio::test]
async fn a_second_request_renews_its_token() {
    let (data, digest) = blob();
    let body = data.clone();
    let (tokens, hung) = (AtomicUsize::new(0), AtomicBool::new(false));
    let server = BadServer::start(move |seen| {
        if seen.path.starts_with("/token") {
            let number = tokens.fetch_add(1, Relaxed) + 1;
            return reply(200, &[], format!("{{\"token\":\"t{number}\"}}").as_bytes());
        }
        match seen.header("authorization") {
            "Bearer t1" if !hung.swap(true, Relaxed) => Reply::Hang(Vec::new()),
            "Bearer t2" => part(seen, &body),
            _ => {
                let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", seen.header("host"));
                reply(401, &[("www-authenticate", &realm)], b"")
            }
        }
    })
    .await;
    let client = Client::new(patient());
    assert!(all(&client, &server.repo(), &digest, 0..1000).await.unwrap() == data[..1000]);
    assert_eq!(server.count("/token"), 2);
}
