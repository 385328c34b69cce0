//! ELF files as tests want them (elf(5)): 64 bits, little endian, of no processor. Also what is fuzzed begins with them.

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Made {
    /// DT_NEEDED.
    pub needed: Vec<Vec<u8>>,
    /// DT_RUNPATH.
    pub search: Option<Vec<u8>>,
    /// PT_INTERP.
    pub interpreter: Option<Vec<u8>>,
    /// Program headers that say nothing.
    pub idle_segments: usize,
    /// How many bytes the string table claims to have beyond those it has.
    pub claimed: u64,
}

const HEADER: usize = 64;
const SEGMENT: usize = 56;

impl Made {
    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let segments = 2 + usize::from(self.interpreter.is_some()) + self.idle_segments;
        let mut body = Vec::new();
        let body_at = HEADER + segments * SEGMENT;
        let place = |body: &mut Vec<u8>, bytes: &[u8]| {
            let at = (body_at + body.len()) as u64;
            body.extend_from_slice(bytes);
            (at, bytes.len() as u64)
        };
        let interpreter =
            self.interpreter.as_ref().map(|name| place(&mut body, &[name, &b"\0"[..]].concat()));
        let mut strings = vec![0];
        let mut string = |text: &[u8]| {
            let at = strings.len() as u64;
            strings.extend_from_slice(text);
            strings.push(0);
            at
        };
        let mut entries: Vec<(u64, u64)> = self.needed.iter().map(|name| (1, string(name))).collect();
        entries.extend(self.search.iter().map(|search| (29, string(search))));
        let size = strings.len() as u64;
        let (strings_at, _) = place(&mut body, &strings);
        // Before the others: of a long table the end is not read.
        entries.splice(0..0, [(5, strings_at), (10, size + self.claimed)]);
        entries.push((0, 0));
        let entries: Vec<u8> =
            entries.into_iter().flat_map(|(tag, value)| [tag, value]).flat_map(u64::to_le_bytes).collect();
        let dynamic = place(&mut body, &entries);
        let whole = (0, (body_at + body.len()) as u64 + self.claimed);
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        let halves =
            |out: &mut Vec<u8>, halves: &[u16]| out.extend(halves.iter().flat_map(|h| h.to_le_bytes()));
        halves(&mut out, &[3, 0]);
        out.extend(1_u32.to_le_bytes());
        out.extend([0, HEADER as u64, 0].into_iter().flat_map(u64::to_le_bytes));
        out.extend(0_u32.to_le_bytes());
        halves(&mut out, &[HEADER as u16, SEGMENT as u16, segments as u16, 0, 0, 0]);
        let known = interpreter.map(|at| (3, at)).into_iter().chain([(1, whole), (2, dynamic)]);
        for (kind, (at, length)) in known.chain((0..self.idle_segments).map(|_| (0, (0, 0)))) {
            out.extend([kind, 4_u32].into_iter().flat_map(u32::to_le_bytes));
            out.extend([at, at, at, length, length, 1].into_iter().flat_map(u64::to_le_bytes));
        }
        out.extend(body);
        out
    }
}
