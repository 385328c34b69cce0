//! What must hold of a decoder for any bytes: errors are fine, panics are bugs; how the bytes are
//! cut must not show in what comes out; every span gives the stream's bytes; no more than the limit comes out.

use hoist_format::codec::{CodecError, Decoded, SpanDecoder, StreamDecoder};
use hoist_format::span::{Codec, Span, SpanTable};

const LIMIT: u64 = 8 << 20;

fn decode(codec: Codec, blob: &[u8], piece: usize) -> Result<(Vec<u8>, Decoded), CodecError> {
    let (mut all, mut decoder) = (Vec::new(), StreamDecoder::with_limit(codec, true, LIMIT)?);
    for part in blob.chunks(piece) {
        decoder.feed::<CodecError>(part, &mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
    }
    Ok((all, decoder.finish()?))
}

/// Any bytes as a whole blob.
pub fn whole(codec: Codec, blob: &[u8]) {
    let (whole, parts) = (decode(codec, blob, usize::MAX), decode(codec, blob, 7));
    // libzstd compares a frame's content size with an empty last block only if it has the frame whole.
    assert!(codec == Codec::Zstd || whole.is_ok() == parts.is_ok());
    let (Ok((stream, Decoded { spans, windows })), Ok((again, _))) = (whole, parts) else { return };
    assert!(stream == again && stream.len() as u64 <= LIMIT);
    assert_eq!(spans.stream_size, stream.len() as u64);
    for i in 0..spans.spans.len() {
        let s = spans.spans[i];
        let (from, to) = (spans.blob_range(i), spans.stream_range(i));
        let window = &windows[s.window_offset as usize..][..s.window_len as usize];
        let mut decoder = SpanDecoder::new(&spans, i, Some(window)).expect("it is our own table");
        let mut got = Vec::new();
        let part = &blob[from.start as usize..from.end as usize];
        let fed = decoder.feed::<CodecError>(part, &mut |bytes| {
            got.extend_from_slice(bytes);
            Ok(())
        });
        fed.expect("the whole blob was decoded");
        assert!(got.starts_with(&stream[to.start as usize..to.end as usize]));
    }
}

/// Any bytes as a table of one span, its window, and the blob.
pub fn span(codec: Codec, data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<16>() else { return };
    let window = &rest[..rest.len().min(usize::from(head[0]))];
    let blob = &rest[window.len()..];
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let span = Span {
        stream_offset: if head[1] & 1 == 0 { 0 } else { number(8) },
        blob_offset: if head[1] & 2 == 0 { 10 } else { number(8) },
        bits: head[2] & 15,
        raw: head[1] & 4 != 0,
        window_offset: 0,
        window_len: window.len() as u32,
        window_digest: *blake3::hash(window).as_bytes(),
    };
    let (blob_size, stream_size) = (u64::MAX, if head[1] & 8 == 0 { LIMIT } else { u64::MAX });
    let table = SpanTable { codec, blob_size, stream_size, spans: vec![span] };
    let Ok(mut decoder) = SpanDecoder::new(&table, 0, Some(window)) else { return };
    for part in blob.chunks(1 + usize::from(head[3])) {
        let mut total = 0u64;
        let fed = decoder.feed::<CodecError>(part, &mut |bytes| {
            total += bytes.len() as u64;
            Ok(())
        });
        if fed.is_err() {
            return;
        }
        assert!(decoder.position() <= table.stream_size);
        assert!(total <= table.stream_size);
    }
}
