//! Archives that no tar program would write, made by hand (POSIX pax, "ustar Interchange Format").

/// One entry, and all that a header can say of it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: u64,
    pub link: Vec<u8>,
    pub device: (u32, u32),
    pub body: Vec<u8>,
    /// PAX records that come before it.
    pub records: Vec<(String, Vec<u8>)>,
    /// The size field, where it shall not be the body's length.
    pub claims: Option<u64>,
}

impl Entry {
    pub fn new(path: impl AsRef<[u8]>, kind: u8) -> Entry {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        Entry {
            path: path.as_ref().to_vec(),
            kind,
            mode,
            owner: (0, 0),
            mtime: 1_700_000_000,
            link: Vec::new(),
            device: (0, 0),
            body: Vec::new(),
            records: Vec::new(),
            claims: None,
        }
    }

    pub fn dir(path: impl AsRef<[u8]>) -> Entry {
        Entry::new(path, b'5')
    }

    pub fn file(path: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Entry {
        Entry { body: body.as_ref().to_vec(), ..Entry::new(path, b'0') }
    }

    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
        Entry { link: target.as_ref().to_vec(), ..Entry::new(path, b'2') }
    }

    pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
        Entry { link: target.as_ref().to_vec(), ..Entry::new(path, b'1') }
    }

    /// An extended header of these very bytes (`x`, `g`, `L` or `K`).
    pub fn extended(kind: u8, body: impl AsRef<[u8]>) -> Entry {
        Entry { body: body.as_ref().to_vec(), ..Entry::new("extended", kind) }
    }

    pub fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Entry {
        self.records.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub fn claiming(self, size: u64) -> Entry {
        Entry { claims: Some(size), ..self }
    }

    /// Appends it as it stands in an archive. Paths beyond the header's fields become records.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut records = self.records.clone();
        let mut long = |key: &str, value: &[u8]| {
            if value.len() > 100 {
                records.push((key.to_owned(), value.to_vec()));
            }
        };
        long("path", &self.path);
        long("linkpath", &self.link);
        if !records.is_empty() {
            let body = records.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<u8>>();
            Entry::extended(b'x', body).write(out);
        }
        out.extend(self.header());
        out.extend(&self.body);
        out.resize(out.len().next_multiple_of(512), 0);
    }

    fn header(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8], room: usize| {
            let n = bytes.len().min(room);
            block[at..at + n].copy_from_slice(&bytes[..n]);
        };
        let octal = |n: u64, digits: usize| format!("{n:0digits$o}\0").into_bytes();
        put(0, &self.path, 100);
        put(100, &octal(self.mode.into(), 7), 8);
        put(108, &octal(self.owner.0.into(), 7), 8);
        put(116, &octal(self.owner.1.into(), 7), 8);
        put(124, &octal(self.claims.unwrap_or(self.body.len() as u64), 11), 12);
        put(136, &octal(self.mtime, 11), 12);
        put(148, b"        ", 8);
        put(156, &[self.kind], 1);
        put(157, &self.link, 100);
        put(257, b"ustar\x0000", 8);
        put(329, &octal(self.device.0.into(), 7), 8);
        put(337, &octal(self.device.1.into(), 7), 8);
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// A PAX record, whose length counts itself.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let bare = key.len() + value.len() + 3;
    let mut len = bare + 1;
    while bare + len.to_string().len() != len {
        len = bare + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// The entries as an archive with its end.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut out));
    out.resize(out.len() + 1024, 0);
    out
}
