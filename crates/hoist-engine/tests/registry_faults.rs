//! The client against servers that fail, lie and stall.

mod registry_support;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use hoist_engine::registry::{Client, RegistryError};
use hoist_format::digest::Digest;
use registry_support::*;

const LENGTH: usize = 300_000;

fn blob() -> (Vec<u8>, Digest) {
    let blob = pattern(LENGTH);
    let digest = Digest::of(&blob);
    (blob, digest)
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_and_an_expired_redirect_is_asked_anew() {
    let (data, digest) = blob();
    let epoch = Arc::new(AtomicUsize::new(1));
    let (now, body) = (epoch.clone(), data.clone());
    type Now = Box<dyn Fn() -> usize + Send>;
    let cdn_epoch: Arc<Mutex<Now>> = Arc::new(Mutex::new(Box::new(move || now.load(SeqCst))));
    let now = cdn_epoch.clone();
    let cdn = BadServer::start(move |seen| {
        let signed = format!("/data?signature={}", now.lock().unwrap()());
        if seen.path == signed { part(seen, &body) } else { reply(403, &[], b"expired") }
    })
    .await;
    let (now, target) = (epoch.clone(), cdn.host.clone());
    let registry = BadServer::start(move |seen| {
        if seen.header("authorization") != "Basic c29tZW9uZTpzM2NyZXQ=" {
            return reply(401, &[("www-authenticate", "Basic realm=\"x\"")], b"");
        }
        let to = format!("http://{target}/data?signature={}", now.load(SeqCst));
        reply(307, &[("location", &to)], b"")
    })
    .await;
    let client = Client::new(with_password(&registry.host));
    let repo = registry.repo();
    for at in [0, 1000, 2000] {
        let part = all(&client, &repo, &digest, at..at + 10).await.unwrap();
        assert_eq!(part, data[at as usize..at as usize + 10]);
    }
    assert_eq!(registry.log().len(), 2, "the redirect is remembered");
    epoch.store(2, SeqCst);
    assert_eq!(all(&client, &repo, &digest, 0..10).await.unwrap(), data[..10]);
    assert_eq!(registry.log().len(), 3, "asked anew once");
    // A storage that refuses every URL is asked twice, and nobody is told to log in to it.
    let before = cdn.log().len();
    epoch.store(3, SeqCst);
    let stale = registry.log().len();
    let lying = epoch.clone();
    *cdn_epoch.lock().unwrap() = Box::new(move || lying.load(SeqCst) + 7);
    let error = all(&client, &repo, &digest, 0..10).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 403, .. }), "{error}");
    let said = error.to_string();
    assert!(
        !said.contains("docker login") && said.contains("redirects to") && said.contains("mirror"),
        "{said}"
    );
    assert!(error.is_user_failure(), "{said}");
    assert_eq!((registry.log().len() - stale, cdn.log().len() - before), (1, 2));
    for seen in cdn.log() {
        assert_eq!(seen.header("authorization"), "", "credentials left their host");
    }
    assert_eq!(client.stats().requests() as usize, registry.log().len() + cdn.log().len());
}

#[tokio::test]
async fn busy_and_broken_servers_are_asked_again() {
    let (data, digest) = blob();
    let body = data.clone();
    let server = BadServer::start(move |seen| match seen.number {
        0 => reply(429, &[("retry-after", "0")], b""),
        1 => reply(500, &[], b""),
        2 => reply(503, &[("retry-after", "0")], b""),
        _ => part(seen, &body),
    })
    .await;
    let client = Client::new(config());
    assert_eq!(all(&client, &server.repo(), &digest, 5..50).await.unwrap(), data[5..50]);
    assert_eq!((server.log().len(), client.stats().retries()), (4, 3));

    let dead = BadServer::start(|_| reply(502, &[], b"")).await;
    let error = client.blob(&dead.repo(), &digest, None).await.unwrap_err();
    assert!(error.retryable() && matches!(error, RegistryError::Status { status: 502, .. }), "{error}");
    assert_eq!(dead.log().len(), 4, "bounded");
}

#[tokio::test]
async fn short_bodies_are_continued_where_they_stopped() {
    let (data, digest) = blob();
    let body = data.clone();
    let server = BadServer::start(move |seen| {
        let (first, last) = seen.range().unwrap();
        // Promises everything, sends 100,000 bytes at most.
        let head = format!(
            "HTTP/1.1 206 X\r\ncontent-length: {}\r\ncontent-range: bytes {first}-{last}/{LENGTH}\r\n\r\n",
            last - first + 1
        );
        let end = (first + 100_000).min(last + 1);
        Reply::Raw([head.as_bytes(), &body[first..end]].concat())
    })
    .await;
    let client = Client::new(config());
    assert_eq!(all(&client, &server.repo(), &digest, 0..LENGTH as u64).await.unwrap(), data);
    let starts: Vec<_> = server.log().iter().map(|seen| seen.range().unwrap().0).collect();
    assert_eq!(starts, [0, 100_000, 200_000]);
}

#[tokio::test]
async fn parts_that_are_others_than_asked_for_are_never_delivered() {
    let (data, digest) = blob();
    for header in [
        "bytes 0-9/300000",
        "bytes 101-109/300000",
        "bytes 100-110/300000",
        "bytes 100-99/300000",
        "bytes 18446744073709551615-0/1",
        "bytes */300000",
        "",
        "nonsense",
    ] {
        let body = data.clone();
        let lying = BadServer::start(move |_| reply(206, &[("content-range", header)], &body[..10])).await;
        let client = Client::new(config());
        let error = all(&client, &lying.repo(), &digest, 100..110).await.unwrap_err();
        assert!(matches!(error, RegistryError::BadAnswer { .. }), "{header}: {error}");
        assert_eq!(lying.log().len(), 3, "{header}: tried again, but not for ever");
    }
    // A shorter part than asked for is a right answer: the rest is asked for.
    let body = data.clone();
    let thrifty = BadServer::start(move |seen| {
        let (first, last) = seen.range().unwrap();
        let last = last.min(first + 49_999);
        let range = format!("bytes {first}-{last}/{LENGTH}");
        reply(206, &[("content-range", &range)], &body[first..=last])
    })
    .await;
    let client = Client::new(config());
    assert_eq!(all(&client, &thrifty.repo(), &digest, 0..LENGTH as u64).await.unwrap(), data);
    assert_eq!(client.stats().retries(), 0);
}

#[tokio::test]
async fn servers_that_ignore_ranges() {
    let data = pattern(5 << 20);
    let digest = Digest::of(&data);
    let body = data.clone();
    let server = BadServer::start(move |_| reply(200, &[], &body)).await;
    let client = Client::new(config());
    let repo = server.repo();
    let whole = all(&client, &repo, &digest, 0..data.len() as u64).await.unwrap();
    assert!(whole == data && !client.ranges_ignored(&repo));
    assert!(all(&client, &repo, &digest, 1000..2000).await.unwrap() == data[1000..2000]);
    assert!(client.ranges_ignored(&repo));
    let error = all(&client, &repo, &digest, 4 << 20..5 << 20).await.unwrap_err();
    assert!(error.is_ranges_ignored(), "{error}");
    assert_eq!(server.log().len(), 2, "what is known is not asked again");
}

#[tokio::test]
async fn content_with_another_digest_is_refused() {
    let server = BadServer::start(|_| reply(200, &[], b"other content")).await;
    let client = Client::new(config());
    let digest = Digest::of(b"content");
    let error = client.blob(&server.repo(), &digest, None).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { expected, .. } if expected == digest), "{error}");
    assert!(error.is_user_failure());
    let named = format!("{}@{digest}", server.repo()).parse().unwrap();
    assert!(matches!(client.manifest(&named).await, Err(RegistryError::DigestMismatch { .. })));

    let claim = Digest::of(b"content").to_string();
    let server = BadServer::start(move |_| reply(200, &[("docker-content-digest", &claim)], b"{}")).await;
    let named = format!("{}:tag", server.repo()).parse().unwrap();
    assert!(matches!(client.manifest(&named).await, Err(RegistryError::DigestMismatch { .. })));
}

#[tokio::test]
async fn endless_redirects_and_bodies_end() {
    let server = BadServer::start(|seen| reply(302, &[("location", &seen.path)], b"")).await;
    let mut config = config();
    config.retry.attempts = 1;
    let client = Client::new(config);
    let digest = Digest::of(b"x");
    assert!(client.blob(&server.repo(), &digest, None).await.is_err());
    assert_eq!(server.log().len(), 6);

    let head = b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n";
    let piece = [b"100000\r\n", &vec![b' '; 1 << 20][..], b"\r\n"].concat();
    let endless = [&head[..], &piece.repeat(6)].concat();
    let server = BadServer::start(move |_| Reply::Raw(endless.clone())).await;
    let named = format!("{}:tag", server.repo()).parse().unwrap();
    let error = client.manifest(&named).await.unwrap_err();
    assert!(error.to_string().contains("more than the 4194304 bytes"), "{error}");
}
