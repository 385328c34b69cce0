//! The header of a gzip member (RFC 1952, section 2.3), byte by byte.

const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// Takes a header's bytes; nothing in it matters but where it ends.
#[derive(Default)]
pub(super) struct Header {
    state: State,
    flags: u8,
    crc: u32,
}

#[derive(Default, Clone, Copy)]
enum State {
    #[default]
    Fixed0,
    Fixed(u8),
    ExtraLen0,
    ExtraLen1(u8),
    Extra(u16),
    Name,
    Comment,
    Crc0,
    Crc1(u8),
    Done,
}

impl Header {
    /// Takes one byte. True when it was the last.
    pub fn byte(&mut self, b: u8) -> Result<bool, &'static str> {
        if !matches!(self.state, State::Crc0 | State::Crc1(_)) && self.flags_may_have_crc() {
            self.crc = hoist_sys::inflate::crc32(self.crc, &[b]);
        }
        self.state = match self.state {
            State::Fixed0 => match b {
                0x1f => State::Fixed(1),
                _ => return Err("no gzip header (1f 8b) where a member must start"),
            },
            State::Fixed(at) => {
                match (at, b) {
                    (1, 0x8b) | (2, 8) | (4..=9, _) => {}
                    (3, flags) if flags & RESERVED == 0 => self.flags = flags,
                    (1, _) => return Err("no gzip header (1f 8b) where a member must start"),
                    (2, _) => return Err("a gzip member is not compressed by deflate"),
                    _ => return Err("a gzip header has reserved flags set"),
                }
                if at == 9 { self.after(0) } else { State::Fixed(at + 1) }
            }
            State::ExtraLen0 => State::ExtraLen1(b),
            State::ExtraLen1(low) => match u16::from_le_bytes([low, b]) {
                0 => self.after(FEXTRA),
                n => State::Extra(n),
            },
            State::Extra(1) => self.after(FEXTRA),
            State::Extra(n) => State::Extra(n - 1),
            State::Name if b == 0 => self.after(FNAME),
            State::Comment if b == 0 => self.after(FCOMMENT),
            State::Crc0 => State::Crc1(b),
            State::Crc1(low) if u16::from_le_bytes([low, b]) == self.crc as u16 => State::Done,
            State::Crc1(_) => return Err("the checksum of a gzip header is wrong"),
            other => other,
        };
        Ok(matches!(self.state, State::Done))
    }

    /// The flags come in byte 3; until then any byte may turn out to be checksummed.
    fn flags_may_have_crc(&self) -> bool {
        matches!(self.state, State::Fixed0 | State::Fixed(..=3)) || self.flags & FHCRC != 0
    }

    /// The state that follows the optional field `done` (fields come in this order).
    fn after(&self, done: u8) -> State {
        let has = |f: u8, rank: u8| self.flags & f != 0 && rank > Self::rank(done);
        if has(FEXTRA, 1) {
            State::ExtraLen0
        } else if has(FNAME, 2) {
            State::Name
        } else if has(FCOMMENT, 3) {
            State::Comment
        } else if has(FHCRC, 4) {
            State::Crc0
        } else {
            State::Done
        }
    }

    fn rank(field: u8) -> u8 {
        match field {
            FEXTRA => 1,
            FNAME => 2,
            FCOMMENT => 3,
            _ => 0,
        }
    }
}
