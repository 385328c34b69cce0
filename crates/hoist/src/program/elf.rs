//! What an ELF program or library asks the dynamic linker for (elf(5), ld.so(8)).
//!
//! The file comes from an image and is hostile: whatever is odd in it means that it asks for nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;

use elf::abi::{DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, PT_DYNAMIC, PT_INTERP, PT_LOAD};
use elf::dynamic::DynamicTable;
use elf::endian::AnyEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::parse::ParseError;
use elf::segment::{ProgramHeader, SegmentTable};
use elf::string_table::StringTable;

/// The ELF header and, where linkers put them, the program headers and the interpreter's name.
const HEAD: usize = 4096;
/// Most that is read of a dynamic table, and of the strings it names.
const MAX_TABLE: u64 = 64 << 10;
const MAX_STRINGS: u64 = 1 << 20;
/// Libraries of one file that are looked for; bytes of one's name (`NAME_MAX`), and of the folders to search (`PATH_MAX`).
const MAX_LIBRARIES: usize = 128;
const MAX_NAME: usize = 255;
const MAX_SEARCH: usize = 4096;

/// The names in a dynamic table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// DT_NEEDED, in order.
    pub libraries: Vec<String>,
    /// DT_RUNPATH, or DT_RPATH where there is none: folders, `:` between them.
    pub search: Option<String>,
}

/// An ELF file's headers.
pub struct Elf {
    header: FileHeader<AnyEndian>,
    segments: Vec<ProgramHeader>,
    head: Vec<u8>,
}

impl Elf {
    /// Reads the first block of a file; `None` if it is no ELF file.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(file: &File) -> std::io::Result<Option<Self>> {
        let mut head = vec![0; HEAD];
        let length = file.read_at(&mut head, 0)?;
        head.truncate(length);
        Ok(Self::parse(head).ok())
    }

    fn parse(head: Vec<u8>) -> Result<Self, ParseError> {
        let bad = ParseError::BadOffset(0);
        // The parser takes for granted that there are so many.
        let ident =
            parse_ident::<AnyEndian>(head.get(..elf::abi::EI_NIDENT).ok_or(ParseError::BadOffset(0))?)?;
        let tail = match ident.1 {
            Class::ELF32 => 36,
            Class::ELF64 => 48,
        };
        let ident_len = elf::abi::EI_NIDENT;
        let tail = head.get(ident_len..ident_len + tail).ok_or(bad)?;
        let header = FileHeader::parse_tail(ident, tail)?;
        let size = usize::from(header.e_phnum) * usize::from(header.e_phentsize);
        let start = usize::try_from(header.e_phoff).unwrap_or(usize::MAX);
        let table = start.checked_add(size).and_then(|end| head.get(start..end));
        let table = table.ok_or(ParseError::BadOffset(header.e_phoff))?;
        let segments = SegmentTable::new(header.endianness, header.class, table).iter().collect();
        Ok(Self { header, segments, head })
    }

    /// The processor it is for (`e_machine`).
    pub fn machine(&self) -> u16 {
        self.header.e_machine
    }

    /// PT_INTERP: the dynamic linker that a program names.
    pub fn interpreter(&self) -> Option<String> {
        let segment = self.segments.iter().find(|s| s.p_type == PT_INTERP)?;
        let start = usize::try_from(segment.p_offset).ok()?;
        let end = start.checked_add(usize::try_from(segment.p_filesz).ok()?)?;
        let name = self.head.get(start..end)?.strip_suffix(b"\0")?;
        std::str::from_utf8(name).ok().map(str::to_owned)
    }

    /// Reads the dynamic table; empty where there is none, as in a static program.
    ///
    /// # Errors
    /// Those of reading.
    pub fn needs(&self, file: &File) -> std::io::Result<Needs> {
        let Some(dynamic) = self.segments.iter().find(|s| s.p_type == PT_DYNAMIC) else {
            return Ok(Needs::default());
        };
        let table = range(file, dynamic.p_offset, dynamic.p_filesz.min(MAX_TABLE))?;
        let table = DynamicTable::new(self.header.endianness, self.header.class, &table);
        let value = |tag| table.iter().find(|d| d.d_tag == tag).map(|d| d.d_val());
        let (Some(at), Some(size)) = (value(DT_STRTAB).and_then(|a| self.offset_of(a)), value(DT_STRSZ))
        else {
            return Ok(Needs::default());
        };
        let strings = range(file, at, size.min(MAX_STRINGS))?;
        let strings = StringTable::new(&strings);
        let name = |at: u64, most: usize| {
            let name = strings.get(usize::try_from(at).ok()?).ok()?;
            (name.len() <= most).then(|| name.to_owned())
        };
        let wanted = table.iter().filter(|d| d.d_tag == DT_NEEDED).take(MAX_LIBRARIES);
        Ok(Needs {
            libraries: wanted.filter_map(|d| name(d.d_val(), MAX_NAME)).collect(),
            search: value(DT_RUNPATH).or_else(|| value(DT_RPATH)).and_then(|at| name(at, MAX_SEARCH)),
        })
    }

    /// Where in the file an address of the loaded program stands.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let loaded = self.segments.iter().filter(|s| s.p_type == PT_LOAD);
        loaded.into_iter().find_map(|s| {
            let within = address.checked_sub(s.p_vaddr).filter(|within| *within < s.p_filesz)?;
            s.p_offset.checked_add(within)
        })
    }
}

/// What the file has of a range.
fn range(file: &File, at: u64, size: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], at.saturating_add(have as u64)) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::made::Made;
    use super::*;
    use std::io::Write;
    use std::process::Command;

    /// The outsider: readelf.
    #[test]
    fn a_program_needs_what_readelf_says() {
        for path in ["/bin/sh", "/usr/bin/python3", "/bin/ls", "/usr/bin/ssh"] {
            let Ok(file) = File::open(path) else { continue };
            let elf = Elf::read(&file).unwrap().unwrap();
            let needs = elf.needs(&file).unwrap();
            let out = Command::new("readelf").args(["-dl", path]).output().unwrap();
            let said = String::from_utf8(out.stdout).unwrap();
            let between = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
            let of = |word: &str| said.lines().filter(|l| l.contains(word)).filter_map(between).collect();
            let libraries: Vec<String> = of("(NEEDED)");
            assert!(!libraries.is_empty(), "{path}: {said}");
            assert_eq!(needs.libraries, libraries, "{path}");
            let interpreter = elf.interpreter().unwrap();
            assert!(said.contains(&format!("interpreter: {interpreter}]")), "{path}: {interpreter}");
        }
    }

    /// Bytes that this thread has read.
    fn read() -> u64 {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    }

    /// However much a file claims to have, so much of it is read, and no more names come of it.
    #[test]
    fn hostile_files_are_read_in_part() {
        let name = |i: usize| format!("lib{i}.so").into_bytes();
        let plain = Made { needed: vec![name(0)], search: Some(b"/lib".to_vec()), ..Made::default() };
        let cases = [
            ("plain", plain.clone(), 1),
            ("many names", Made { needed: (0..100_000).map(name).collect(), ..plain.clone() }, MAX_LIBRARIES),
            ("long names", Made { needed: vec![vec![b'x'; 300_000]; 3], ..plain.clone() }, 0),
            ("long folders", Made { search: Some(b"$ORIGIN:".repeat(5000)), ..plain.clone() }, 1),
            ("a gigabyte of strings", Made { claimed: 1 << 30, ..plain.clone() }, 1),
            ("strings past all ends", Made { claimed: u64::MAX >> 1, ..plain.clone() }, 1),
            ("many segments", Made { idle_segments: 60_000, ..plain.clone() }, 0),
        ];
        let before = read();
        let own_cost = read() - before;
        for (what, made, libraries) in cases {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&made.bytes()).unwrap();
            // A hole: there is a gigabyte to be read.
            file.set_len(made.bytes().len() as u64 + made.claimed.min(1 << 30)).unwrap();
            let before = read();
            let needs = Elf::read(&file).unwrap().map(|elf| elf.needs(&file).unwrap()).unwrap_or_default();
            let cost = read() - before - own_cost;
            assert_eq!(needs.libraries.len(), libraries, "{what}");
            assert!(cost <= HEAD as u64 + MAX_TABLE + MAX_STRINGS + 100, "{what}: {cost} bytes read");
            assert!(needs.search.is_none_or(|search| search.len() <= MAX_SEARCH), "{what}");
        }
    }

    #[test]
    fn what_is_too_short_is_no_elf_file() {
        for length in 0..64 {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&Made::default().bytes()[..length]).unwrap();
            assert!(Elf::read(&file).unwrap().is_none(), "{length}");
        }
    }

    #[test]
    fn damage_needs_nothing() {
        let whole = std::fs::read("/bin/sh").unwrap();
        let mut file = tempfile::tempfile().unwrap();
        for at in (0..900).chain((900..whole.len()).step_by(997)) {
            let mut bad = whole.clone();
            bad[at] ^= 0xff;
            file.set_len(0).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            file.write_all(&bad[..(at + 200).min(bad.len())]).unwrap();
            if let Some(elf) = Elf::read(&file).unwrap() {
                elf.interpreter();
                elf.needs(&file).unwrap();
            }
        }
    }
}
