//! What can go wrong, and when.

use std::time::Duration;

/// One kind of failure of a registry or a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// Answer with this status and these headers, without asking the registry.
    Status(u16, Vec<(String, String)>),
    /// Answer 200 with this body of this media type, without asking the registry.
    Answer(&'static str, String),
    /// A complete, well-formed response whose body has only this many bytes.
    ShortBody(u64),
    /// Close the connection after this many bytes of the body.
    CloseAfter(u64),
    /// Flip the lowest bit of the byte at this offset of the body.
    FlipBit(u64),
    /// Answer as if no range had been asked for.
    IgnoreRange,
    /// Say in `Content-Range` that the bytes come from elsewhere.
    WrongContentRange,
    /// Take the request and never answer.
    Hang,
    /// Send this many bytes of the body and then nothing, with the connection left open.
    HangAfter(u64),
    /// Wait this long before passing the request on.
    Delay(Duration),
}

/// Which of the matching requests fail; the first is number 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Every one.
    Always,
    /// This one only.
    Nth(u64),
    /// All up to this one.
    First(u64),
    /// This one and all after it.
    From(u64),
}

/// A failure of requests whose `METHOD path` contains `matching`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For instance `GET /v2/app/blobs/`; empty for every request.
    pub matching: String,
    /// Which of them fail.
    pub when: When,
    /// How they fail.
    pub kind: FaultKind,
}

impl Fault {
    /// A fault of requests whose `METHOD path` contains `matching`.
    pub fn new(matching: impl Into<String>, when: When, kind: FaultKind) -> Self {
        Self { matching: matching.into(), when, kind }
    }
}

#[derive(Debug)]
pub(super) struct Armed {
    fault: Fault,
    seen: u64,
}

impl From<Fault> for Armed {
    fn from(fault: Fault) -> Self {
        Self { fault, seen: 0 }
    }
}

/// The fault that this request meets: the first armed one that is due. All that match count it.
pub(super) fn due(armed: &mut [Armed], request: &str) -> Option<FaultKind> {
    let mut due = None;
    for one in armed.iter_mut().filter(|one| request.contains(&one.fault.matching)) {
        one.seen += 1;
        let hit = match one.fault.when {
            When::Always => true,
            When::Nth(n) => one.seen == n,
            When::First(n) => one.seen <= n,
            When::From(n) => one.seen >= n,
        };
        if hit && due.is_none() {
            due = Some(one.fault.kind.clone());
        }
    }
    due
}
