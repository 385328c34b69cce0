//! A chain of zstd frames (RFC 8878), skippable ones among them.

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::CodecError;
use super::buffer::{Buffer, Output};
use super::checkpoint::Checkpoints;
use crate::span::Codec;

/// Frames that need a larger window than 2^27 bytes (128 MiB) are refused: what `zstd -d` takes
/// without being told otherwise. Frames that need a dictionary fail, as none is loaded.
const WINDOW_LOG: u32 = 27;

pub(super) struct Zstd {
    decoder: Decoder<'static>,
    in_frame: bool,
    /// Output is left inside the decoder.
    flushing: bool,
    /// Bytes of the blob consumed, from its start.
    pub at: u64,
}

impl Zstd {
    pub fn at_frame(at: u64) -> Result<Self, CodecError> {
        let setup = |e: std::io::Error| CodecError::ZstdSetup(e.to_string());
        let mut decoder = Decoder::new().map_err(setup)?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(setup)?;
        Ok(Self { decoder, in_frame: false, flushing: false, at })
    }

    /// True where the blob may end. An empty blob is no zstd.
    pub fn may_end(&self) -> bool {
        !self.in_frame && self.at > 0
    }

    pub fn feed<E: From<CodecError>>(
        &mut self,
        mut input: &[u8],
        buf: &mut Buffer,
        mut spans: Option<&mut Checkpoints>,
        out: &mut dyn FnMut(Output<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !input.is_empty() || self.flushing {
            if !self.in_frame {
                if let Some(spans) = spans.as_deref_mut() {
                    spans.start(buf.total, self.at)?;
                }
                self.in_frame = true;
            }
            buf.make_room(out)?;
            let room = buf.room();
            let room_len = room.len();
            let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(room));
            let left = match self.decoder.run(&mut from, &mut to) {
                Ok(left) => left,
                Err(_) => {
                    let what = "damaged zstd data, or a frame that needs a dictionary or more than 128 MiB of window";
                    return Err(CodecError::Damaged { codec: Codec::Zstd, at: self.at, what }.into());
                }
            };
            let (consumed, produced) = (from.pos(), to.pos());
            input = &input[consumed..];
            self.at += consumed as u64;
            buf.produced(produced)?;
            self.in_frame = left != 0;
            self.flushing = self.in_frame && produced == room_len;
        }
        Ok(())
    }
}
