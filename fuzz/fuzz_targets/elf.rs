//! Any bytes as a program that is about to start: errors are fine, panics are bugs, and no more comes of it than the limits
//! allow. Random bytes hardly make an ELF file: those of a sound one are damaged as well.
#![no_main]

#[path = "../../crates/hoist/src/program/made.rs"]
mod made;
#[path = "../../crates/hoist/src/program/elf.rs"]
mod program;

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;

thread_local! {
    static FILE: RefCell<File> = RefCell::new(tempfile::tempfile().expect("a file"));
}

fuzz_target!(|data: &[u8]| {
    check(data);
    // Its own names, and then bytes that are written over it: place and value.
    let (names, damage) = data.split_at(data.len() / 2);
    let mut names = names.split(|byte| *byte == b'/').map(<[u8]>::to_vec);
    let made = made::Made {
        interpreter: names.next(),
        search: names.next(),
        needed: names.collect(),
        idle_segments: data.len() % 7,
        claimed: u64::from(data.first().copied().unwrap_or(0)) << 20,
    };
    let mut bytes = made.bytes();
    check(&bytes);
    for patch in damage.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % bytes.len();
        bytes[at] = patch[2];
    }
    check(&bytes);
});

fn check(bytes: &[u8]) {
    FILE.with_borrow(|file| {
        file.set_len(0).expect("a file to cut");
        file.write_all_at(bytes, 0).expect("a file to write");
        let Some(elf) = program::Elf::read(file).expect("a file to read") else { return };
        let _ = (elf.machine(), elf.interpreter());
        // No file has bytes past all that can be counted.
        let Ok(needs) = elf.needs(file) else { return };
        assert!(needs.libraries.len() <= 128 && needs.libraries.iter().all(|name| name.len() <= 255));
        assert!(needs.search.is_none_or(|search| search.len() <= 4096));
    });
}
