//! What filler and keeper tell each other: packets over a socketpair, some with a descriptor.
//!
//! A packet sent is a packet delivered, also after the sender's death; so nothing is acknowledged.

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::presence::Presence;

/// A path and some hundred numbers fit.
const PACKET: usize = 8192;
/// Longest name of a deposited descriptor.
const NAME: usize = 255;
const CUT: &str = "a packet between filler and keeper is not of their protocol";

/// A connected pair: of packets, closed by exec.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// One packet.
#[derive(Debug)]
pub(super) enum Word {
    // From a filler.
    /// This mount is about to be made, or more is known of it.
    Watch(Presence),
    /// This mount is gone.
    Forget(PathBuf),
    /// Give the descriptor to every successor, under this name.
    Deposit(String, OwnedFd),
    /// Give it no more.
    Withdraw(String),
    /// Start this program as a successor while I serve.
    Upgrade(PathBuf),
    /// A successor: I could begin now.
    Ready,
    /// All mounts are gone, and so am I.
    End,

    // From the keeper.
    /// To a successor: who I am; numbers below this one are to be kept free; does a filler live?
    Hello { keeper: OwnedFd, reserve: u64, beside: bool },
    /// The fanotify group.
    Group(OwnedFd),
    /// The table of events in work.
    Table(OwnedFd),
    /// That was all of it.
    All,
    /// The one before is gone: begin.
    Go,
    /// Take no more events and go: your successor is ready.
    Superseded,
    /// There will be no successor.
    Failed,
}

impl Word {
    fn kind(&self) -> u8 {
        match self {
            Self::Watch(_) => b'w',
            Self::Forget(_) => b'f',
            Self::Deposit(..) => b'd',
            Self::Withdraw(_) => b'x',
            Self::Upgrade(_) => b'u',
            Self::Ready => b'r',
            Self::End => b'.',
            Self::Hello { .. } => b'h',
            Self::Group(_) => b'g',
            Self::Table(_) => b't',
            Self::All => b'a',
            Self::Go => b'!',
            Self::Superseded => b's',
            Self::Failed => b'-',
        }
    }

    /// Sends it. A descriptor is lent: the receiver gets a copy.
    ///
    /// # Errors
    /// EPIPE where the other side is gone.
    pub fn send(&self, to: impl AsFd) -> io::Result<()> {
        match self {
            Self::Watch(presence) => {
                let numbers: Vec<u64> =
                    [presence.before].iter().chain(&presence.superblocks).copied().collect();
                send(to, self.kind(), &numbers, presence.target.as_os_str().as_bytes(), None)
            }
            Self::Forget(path) | Self::Upgrade(path) => {
                send(to, self.kind(), &[], path.as_os_str().as_bytes(), None)
            }
            Self::Deposit(name, fd) => deposit(to, name, fd.as_fd()),
            Self::Withdraw(name) => send(to, self.kind(), &[], name.as_bytes(), None),
            Self::Hello { keeper, reserve, beside } => {
                send(to, self.kind(), &[*reserve, u64::from(*beside)], &[], Some(keeper.as_fd()))
            }
            Self::Group(fd) | Self::Table(fd) => send(to, self.kind(), &[], &[], Some(fd.as_fd())),
            _ => send(to, self.kind(), &[], &[], None),
        }
    }
}

/// Lends the group to a successor.
pub(super) fn lend_group(to: impl AsFd, group: BorrowedFd<'_>) -> io::Result<()> {
    send(to, b'g', &[], &[], Some(group))
}

/// Lends the table to a successor.
pub(super) fn lend_table(to: impl AsFd, table: BorrowedFd<'_>) -> io::Result<()> {
    send(to, b't', &[], &[], Some(table))
}

/// Sends [`Word::Deposit`].
pub(super) fn deposit(to: impl AsFd, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    if name.len() > NAME {
        let why = format!("the name of a deposited descriptor has more than {NAME} bytes: {name:?}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    send(to, b'd', &[], name.as_bytes(), Some(fd))
}

/// Layout: kind, number of numbers (u16), numbers (u64), text; native-endian, as one program speaks.
fn send(to: impl AsFd, kind: u8, numbers: &[u64], text: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut packet = Vec::with_capacity(PACKET);
    packet.push(kind);
    packet.extend((numbers.len() as u16).to_ne_bytes());
    numbers.iter().for_each(|n| packet.extend(n.to_ne_bytes()));
    packet.extend(text);
    if packet.len() > PACKET {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a path is too long to be told to the keeper",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let lent = fd.into_iter().collect::<Vec<_>>();
    if !lent.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&lent));
    }
    loop {
        match sendmsg(to.as_fd(), &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(drop).map_err(Into::into),
        }
    }
}

/// Receives a packet, waiting for it unless `at_once`. None: the other side is gone.
///
/// # Errors
/// WouldBlock where there is none yet; InvalidData for what is no packet of ours.
pub(super) fn receive(from: impl AsFd, at_once: bool) -> io::Result<Option<Word>> {
    let mut packet = [0; PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if at_once {
        flags |= RecvFlags::DONTWAIT;
    }
    let got = loop {
        match recvmsg(from.as_fd(), &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?.bytes,
        }
    };
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fd = received.last();
        }
    }
    if got == 0 {
        return Ok(None);
    }
    decode(&packet[..got], fd).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, CUT)).map(Some)
}

fn decode(packet: &[u8], fd: Option<OwnedFd>) -> Option<Word> {
    let (&kind, rest) = packet.split_first()?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    let (numbers, text) = rest.split_at_checked(usize::from(u16::from_ne_bytes(*count)) * 8)?;
    let mut numbers = numbers.as_chunks::<8>().0.iter().map(|n| u64::from_ne_bytes(*n));
    let path = || Path::new(OsStr::from_bytes(text)).to_owned();
    let name = || String::from_utf8(text.to_vec()).ok();
    Some(match kind {
        b'w' => {
            Word::Watch(Presence { before: numbers.next()?, superblocks: numbers.collect(), target: path() })
        }
        b'f' => Word::Forget(path()),
        b'd' => Word::Deposit(name()?, fd?),
        b'x' => Word::Withdraw(name()?),
        b'u' => Word::Upgrade(path()),
        b'r' => Word::Ready,
        b'.' => Word::End,
        b'h' => Word::Hello { keeper: fd?, reserve: numbers.next()?, beside: numbers.next()? != 0 },
        b'g' => Word::Group(fd?),
        b't' => Word::Table(fd?),
        b'a' => Word::All,
        b'!' => Word::Go,
        b's' => Word::Superseded,
        b'-' => Word::Failed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_descriptors_arrive_and_outlive_the_sender() {
        let (a, b) = pair().unwrap();
        let presence = Presence { target: "/a b".into(), before: 7, superblocks: vec![8, u64::MAX] };
        Word::Watch(presence.clone()).send(&a).unwrap();
        let (deposited, other_end) = pair().unwrap();
        deposit(&a, "fuse 1", deposited.as_fd()).unwrap();
        Word::Ready.send(&a).unwrap();
        drop((a, deposited));
        assert!(matches!(receive(&b, false), Ok(Some(Word::Watch(found))) if found == presence));
        let Ok(Some(Word::Deposit(name, fd))) = receive(&b, false) else { panic!("no deposit") };
        assert_eq!(name, "fuse 1");
        Word::End.send(&fd).unwrap();
        assert!(matches!(receive(&other_end, true), Ok(Some(Word::End))));
        assert!(matches!(receive(&b, false), Ok(Some(Word::Ready))));
        assert!(matches!(receive(&b, true), Ok(None)));
    }

    #[test]
    fn what_is_no_packet_of_ours_is_refused() {
        let (a, b) = pair().unwrap();
        assert_eq!(receive(&b, true).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        for bytes in [&b"?"[..], b"w", b"w\0\0", b"w\x09\0\0", b"d\0\0name", b"x\0\0\xff", b"q\0\0"] {
            rustix::io::write(&a, bytes).unwrap();
            assert_eq!(receive(&b, true).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
        assert!(deposit(&a, &"x".repeat(256), b.as_fd()).is_err());
    }
}
