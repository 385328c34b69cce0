//! An archive of a few files, as tools write one; the fuzz targets make theirs with it too.

/// The files by name and contents, each of mode 644.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, bytes) in files {
        let mut header = [0; 512];
        let mut text = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        text(0, name);
        text(100, "0000644");
        text(108, "0000000");
        text(116, "0000000");
        text(124, &format!("{:011o}", bytes.len()));
        text(136, "00000000000");
        text(148, "        ");
        text(156, "0");
        text(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        all.extend_from_slice(&header);
        all.extend_from_slice(bytes);
        all.resize(all.len().next_multiple_of(512), 0);
    }
    all.resize(all.len() + 1024, 0);
    all
}
