//! Any bytes as a FUSE request: errors are fine, panics are bugs. Where a request's number can be read, an
//! error names it too, so that whoever waits for it gets an answer.
#![no_main]

use hoist_sys::fuse::{Operation, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data);
    // Hardly any bytes have their own length in front; these always do.
    let mut whole = data.to_vec();
    if let Some(length) = whole.get_mut(..4) {
        length.copy_from_slice(&(data.len() as u32).to_ne_bytes());
    }
    check(&whole);
});

fn check(bytes: &[u8]) {
    let unique = bytes.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
    match Request::parse(bytes) {
        Ok(request) => {
            assert_eq!(Some(request.unique), unique);
            match request.operation {
                Operation::Lookup { name } | Operation::Getxattr { name, .. } => assert!(!name.contains(&0)),
                _ => {}
            }
        }
        Err(e) if bytes.len() >= 40 => assert_eq!(e.unique, unique),
        Err(e) => assert_eq!(e.unique, None),
    }
}
