//! What replies are made of, each as the bytes behind the reply's header.

/// What an inode shows, of `struct fuse_attr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// `st_ino`.
    pub ino: u64,
    /// `st_size`.
    pub size: u64,
    /// All three times: seconds.
    pub seconds: i64,
    /// All three times: nanoseconds.
    pub nanoseconds: u32,
    /// `st_mode`, type included.
    pub mode: u32,
    /// `st_nlink`.
    pub nlink: u32,
    /// `st_uid`.
    pub uid: u32,
    /// `st_gid`.
    pub gid: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// `st_blksize`.
const BLOCK: u64 = 4096;
/// How long the kernel may remember, in seconds: what is served never changes. It counts in jiffies of 64
/// bits, but converts from seconds with less room: 34 years are well inside.
const FOREVER: u64 = 1 << 30;
/// Bytes of `struct fuse_entry_out`.
const ENTRY: usize = 128;
/// Bytes of `struct fuse_dirent` before its name.
const DIRENT: usize = 24;

impl Attributes {
    fn put(&self, out: &mut Vec<u8>) {
        let seconds = self.seconds.cast_unsigned();
        for long in
            [self.ino, self.size, self.size.div_ceil(BLOCK) * (BLOCK / 512), seconds, seconds, seconds]
        {
            out.extend(long.to_ne_bytes());
        }
        let (major, minor) = self.device;
        // The kernel's `new_encode_dev`.
        let device = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        let nanoseconds = [self.nanoseconds; 3];
        let owner = [self.mode, self.nlink, self.uid, self.gid, device, BLOCK as u32, 0];
        for word in nanoseconds.into_iter().chain(owner) {
            out.extend(word.to_ne_bytes());
        }
    }
}

/// A name's inode. Inode numbers are never given to another file, so there is no generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The inode's number in the session.
    pub node: u64,
    /// What it shows.
    pub attributes: Attributes,
}

impl Entry {
    fn put(&self, out: &mut Vec<u8>) {
        for long in [self.node, 0, FOREVER, FOREVER, 0] {
            out.extend(long.to_ne_bytes());
        }
        self.attributes.put(out);
    }
}

/// Answers a lookup.
pub fn entry(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENTRY);
    entry.put(&mut out);
    out
}

/// Answers a lookup of a name that is not there, and never will be: unlike ENOENT, this is remembered.
pub fn negative_entry() -> Vec<u8> {
    entry(&Entry { node: 0, attributes: Attributes::default() })
}

/// Answers a question for attributes.
pub fn attributes(attributes: &Attributes) -> Vec<u8> {
    let mut out = Vec::with_capacity(104);
    out.extend(FOREVER.to_ne_bytes());
    out.extend(0u64.to_ne_bytes());
    attributes.put(&mut out);
    out
}

/// What `statfs(2)` shows of a file system that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Blocks of 4096 bytes.
    pub blocks: u64,
    /// Inodes.
    pub files: u64,
}

/// Answers `statfs`.
pub fn statfs(of: &FileSystem) -> Vec<u8> {
    let mut out = Vec::with_capacity(80);
    for long in [of.blocks, 0, 0, of.files, 0] {
        out.extend(long.to_ne_bytes());
    }
    for word in [BLOCK as u32, 255, BLOCK as u32, 0, 0, 0, 0, 0, 0, 0] {
        out.extend(word.to_ne_bytes());
    }
    out
}

/// Answers how large an extended attribute, or the list of them, is.
pub fn xattr_size(size: u32) -> Vec<u8> {
    [size.to_ne_bytes(), [0; 4]].concat()
}

/// Entries of a folder, as many as there is room for.
#[derive(Debug)]
pub struct Listing {
    bytes: Vec<u8>,
    room: usize,
}

impl Listing {
    /// With room for `size` bytes.
    pub fn new(size: u32) -> Self {
        // Who asks for more than a reply may hold gets less.
        let room = (size as usize).min(1 << 20);
        Self { bytes: Vec::with_capacity(room), room }
    }

    /// Adds a name; false when there is no room for it any more. `kind` is the `S_IFMT` part of the mode
    /// moved down by 12 bits (`DT_*`), `next` the position behind this entry.
    pub fn add(&mut self, name: &[u8], ino: u64, kind: u32, next: u64) -> bool {
        let fits = self.fits(DIRENT, name);
        if fits {
            self.put(name, ino, kind, next);
        }
        fits
    }

    /// The same with what the inode shows. None for `.` and `..`: the kernel has those.
    pub fn add_plus(&mut self, name: &[u8], entry: Option<&Entry>, ino: u64, kind: u32, next: u64) -> bool {
        let fits = self.fits(ENTRY + DIRENT, name);
        if fits {
            match entry {
                Some(entry) => entry.put(&mut self.bytes),
                None => self.bytes.resize(self.bytes.len() + ENTRY, 0),
            }
            self.put(name, ino, kind, next);
        }
        fits
    }

    fn fits(&self, before: usize, name: &[u8]) -> bool {
        self.bytes.len() + (before + name.len()).next_multiple_of(8) <= self.room
    }

    fn put(&mut self, name: &[u8], ino: u64, kind: u32, next: u64) {
        self.bytes.extend(ino.to_ne_bytes());
        self.bytes.extend(next.to_ne_bytes());
        self.bytes.extend((name.len() as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// The reply.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Sizes of the structs in fuse.h.
    #[test]
    fn lengths() {
        let shown = Attributes { device: (259, 70000), ..Attributes::default() };
        assert_eq!(entry(&Entry { node: 2, attributes: shown }).len(), ENTRY);
        assert_eq!(attributes(&shown).len(), 104);
        assert_eq!(statfs(&FileSystem { blocks: 1, files: 1 }).len(), 80);
        assert_eq!(xattr_size(3).len(), 8);
    }

    #[test]
    fn a_listing_stops_when_it_is_full() {
        let mut listing = Listing::new(2 * 32 + 31);
        assert!(listing.add(b"12345678", 1, 8, 1) && listing.add(b"1", 2, 8, 2));
        assert!(!listing.add(b"1", 3, 8, 3) && !listing.add_plus(b"1", None, 3, 8, 3));
        assert_eq!(listing.finish().len(), 64);
    }
}
