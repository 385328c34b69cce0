//! A chain of gzip members (RFC 1952), from the first one's header or from a checkpoint in one.

use hoist_sys::inflate::{Inflate, WINDOW, crc32};

use super::CodecError;
use super::buffer::{Buffer, Output};
use super::checkpoint::Checkpoints;
use super::header::Header;
use crate::span::Codec;

enum State {
    Header(Header),
    /// How many bits of the first byte to come are the deflate data's.
    Prime(u8),
    Body,
    Trailer([u8; 8], usize),
    /// After a member: another one, zero padding, or the end.
    Between,
    Padding,
}

/// What of a member's trailer is compared.
#[derive(Clone, Copy, PartialEq)]
enum Check {
    /// Checksum and length.
    All,
    /// Its length.
    Length,
    Nothing,
}

pub(super) struct Gzip {
    state: State,
    inflate: Inflate,
    /// Of the member's output, kept only where it can be checked.
    crc: u32,
    member_start: u64,
    check: Check,
    /// The last byte of deflate data consumed.
    last: u8,
    /// Bytes of the blob consumed, from its start.
    pub at: u64,
}

impl Gzip {
    /// At a member's header. `check`: verify every member's checksum and length.
    pub fn at_member(at: u64, stream: u64, check: bool) -> Result<Self, CodecError> {
        let inflate = Inflate::raw().map_err(CodecError::Setup)?;
        let state = State::Header(Header::default());
        let check = if check { Check::All } else { Check::Nothing };
        Ok(Self { state, inflate, crc: 0, member_start: stream, check, last: 0, at })
    }

    /// In the middle of a member; `at` counts the shared byte if there are `bits`.
    pub fn at_block(at: u64, bits: u8, window: Vec<u8>) -> Result<Self, CodecError> {
        let mut inflate = Inflate::raw().map_err(CodecError::Setup)?;
        if !window.is_empty() {
            inflate.set_dictionary(&window).map_err(CodecError::Setup)?;
        }
        let state = if bits > 0 { State::Prime(bits) } else { State::Body };
        Ok(Self { state, inflate, crc: 0, member_start: 0, check: Check::Nothing, last: 0, at })
    }

    /// Compares no checksums.
    pub fn leave_checksums(&mut self) {
        if self.check == Check::All {
            self.check = Check::Length;
        }
    }

    fn damaged(&self, what: &'static str) -> CodecError {
        CodecError::Damaged { codec: Codec::Gzip, at: self.at, what }
    }

    /// True where the blob may end.
    pub fn may_end(&self) -> bool {
        matches!(self.state, State::Between | State::Padding)
    }

    pub fn feed<E: From<CodecError>>(
        &mut self,
        mut input: &[u8],
        buf: &mut Buffer,
        mut spans: Option<&mut Checkpoints>,
        out: &mut dyn FnMut(Output<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            if let State::Body = self.state {
                if !self.body(&mut input, buf, spans.as_deref_mut(), out)? {
                    return Ok(());
                }
                continue;
            }
            let Some((&b, rest)) = input.split_first() else { return Ok(()) };
            if let State::Between = self.state {
                self.state = match b {
                    0 => State::Padding,
                    _ => {
                        if let Some(spans) = spans.as_deref_mut() {
                            spans.start(buf.total, self.at)?;
                        }
                        self.member_start = buf.total;
                        self.crc = 0;
                        self.inflate.reset_raw().map_err(CodecError::Setup)?;
                        State::Header(Header::default())
                    }
                };
                continue;
            }
            self.byte(b, buf.total)?;
            self.at += 1;
            input = rest;
        }
    }

    /// Takes one byte outside of deflate data.
    fn byte(&mut self, b: u8, total: u64) -> Result<(), CodecError> {
        match &mut self.state {
            State::Header(header) => match header.byte(b) {
                Ok(true) => self.state = State::Body,
                Ok(false) => {}
                Err(what) => return Err(self.damaged(what)),
            },
            State::Prime(bits) => {
                let bits = *bits;
                self.inflate.prime(bits, b >> (8 - bits)).map_err(CodecError::Setup)?;
                self.state = State::Body;
            }
            State::Trailer(bytes, have) => {
                bytes[*have] = b;
                *have += 1;
                if *have == 8 {
                    let [c0, c1, c2, c3, l0, l1, l2, l3] = *bytes;
                    let (crc, len) =
                        (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes([l0, l1, l2, l3]));
                    if self.check == Check::All && crc != self.crc {
                        return Err(self.damaged("the checksum of a gzip member is wrong"));
                    }
                    if self.check != Check::Nothing && len != (total - self.member_start) as u32 {
                        return Err(self.damaged("the length in a gzip member's trailer is wrong"));
                    }
                    self.state = State::Between;
                }
            }
            State::Padding if b != 0 => return Err(self.damaged("data after the last gzip member")),
            State::Padding | State::Body | State::Between => {}
        }
        Ok(())
    }

    /// Inflates. False when it needs more input.
    fn body<E: From<CodecError>>(
        &mut self,
        input: &mut &[u8],
        buf: &mut Buffer,
        mut spans: Option<&mut Checkpoints>,
        out: &mut dyn FnMut(Output<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        buf.make_room(out)?;
        let seek = match spans.as_deref_mut() {
            Some(s) => buf.total >= s.next_raw() && s.affordable(self.at)?,
            None => false,
        };
        // Stops between blocks cost a copy of the window each, so only where a checkpoint is due.
        let due = spans.as_ref().map_or(0, |s| match s.followed(buf.total) {
            0 => s.next_raw().saturating_sub(buf.total),
            more => more,
        });
        let mut room = buf.room();
        if due > 0 {
            let until = room.len().min(usize::try_from(due).unwrap_or(usize::MAX));
            room = &mut room[..until];
        }
        let step = match self.inflate.step(input, room, seek) {
            Ok(step) => step,
            Err(_) => return Err(self.damaged("damaged deflate data").into()),
        };
        if self.check == Check::All {
            self.crc = crc32(self.crc, &room[..step.produced]);
        }
        let (taken, rest) = input.split_at(step.consumed);
        *input = rest;
        self.last = taken.last().copied().unwrap_or(self.last);
        self.at += step.consumed as u64;
        buf.produced(step.produced)?;
        if let Some(spans) = spans.as_deref_mut() {
            spans.follow(taken, buf.total)?;
        }
        if step.end {
            if let Some(spans) = spans {
                spans.end()?;
            }
            self.state = State::Trailer([0; 8], 0);
            return Ok(true);
        }
        if let (Some(bits), Some(spans)) = (step.block_boundary, spans)
            && buf.total >= spans.next_raw()
        {
            let own = usize::try_from(buf.total - self.member_start).unwrap_or(usize::MAX).min(WINDOW);
            spans.raw(buf.total, self.at, (bits, self.last), buf.last(own))?;
        }
        Ok(step.consumed > 0 || step.produced > 0)
    }
}
