//! An image as overlaybd stores it, or as TurboOCI does, for the bench of formats: overlaybd's own tools are in no package
//! registry. Each layer is what it changes of an ext4 on which the layers below it are, in blocks of 4 KiB, compressed with lz4
//! (overlaybd `src/overlaybd/{lsmt,zfile,tar}`); of TurboOCI only metadata, beside the original layers ([turbo]).

mod turbo;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{SeekFrom, seek};
use serde_json::{Value, json};

use crate::{digest, process};

const BLOCK: usize = 4096;
const SECTOR: usize = 512;
/// Sectors that one entry of an index may have.
const LONGEST: usize = (1 << 14) - (BLOCK / SECTOR);
/// Bytes of the device; it is sparse.
const DEVICE: u64 = 16 << 30;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// overlaybd.
    Blocks,
    /// TurboOCI: metadata beside the original layers.
    Turbo,
}

/// Makes the layout `to` of the image in the layout `from`.
///
/// # Errors
/// When it has not one image, or its layers cannot be unpacked.
pub fn convert(kind: Kind, from: &Path, to: &Path) -> Result<()> {
    let json = |path: &Path| -> Result<Value> {
        serde_json::from_slice(&fs::read(path)?).with_context(|| format!("reading {}", path.display()))
    };
    let blob =
        |of: &Value| from.join("blobs").join(of["digest"].as_str().unwrap_or_default().replace(':', "/"));
    let mut manifest = json(&blob(&json(&from.join("index.json"))?["manifests"][0]))?;
    let mut config = json(&blob(&manifest["config"]))?;
    fs::create_dir_all(to.join("blobs/sha256"))?;
    let (disk, below, point) = (to.join("disk"), to.join("below"), to.join("mnt"));
    File::create(&disk)?.set_len(DEVICE)?;
    let features = "^has_journal,^resize_inode,64bit,sparse_super,flex_bg,extent,dir_index";
    let mut format = Command::new("mkfs.ext4");
    format.args(["-qF", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-U", "clear", "-O", features]);
    process::run(format.arg(&disk))?;
    File::create(&below)?.set_len(DEVICE)?;
    fs::create_dir_all(&point)?;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in manifest["layers"].as_array().context("it has no layers")? {
        let original = blob(layer);
        process::run(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&point))?;
        let unpacked = unpack(&original, &point).and_then(|()| match kind {
            Kind::Blocks => Ok(Vec::new()),
            Kind::Turbo => {
                // What was not written has no place yet.
                process::run(Command::new("sync").arg("-f").arg(&point))?;
                turbo::contents(&original, &point)
            }
        });
        process::run(Command::new("umount").arg(&point))?;
        let contents = unpacked?;
        let part = to.join("part");
        let key = |name: &str| format!("containerd.io/snapshot/overlaybd/{name}");
        let mut made = match kind {
            Kind::Blocks => {
                pack(&disk, &below, &part)?;
                let made = add(to, &part, LAYER)?;
                diff_ids.push(made["digest"].clone());
                made
            }
            Kind::Turbo => {
                let tar = turbo::pack(&disk, &below, &contents, &original, &part)?;
                diff_ids.push(digest::of_file(&tar)?.0.into());
                fs::remove_file(&tar)?;
                let name = original.file_name().context("a blob without a name")?;
                fs::copy(&original, to.join("blobs/sha256").join(name))?;
                add(to, &part, GZIP_LAYER)?
            }
        };
        made["annotations"] = json!({
            key("blob-digest"): made["digest"], key("blob-size"): made["size"].to_string(), key("blob-fs-type"): "ext4",
        });
        let told = match kind {
            Kind::Blocks => vec![("version", json!("0.1.0"))],
            Kind::Turbo => vec![
                ("version", json!("0.1.0-turbo.ociv1")),
                ("turbo-oci/target-digest", layer["digest"].clone()),
                ("turbo-oci/target-media-type", layer["mediaType"].clone()),
            ],
        };
        told.into_iter().for_each(|(name, value)| made["annotations"][key(name)] = value);
        layers.push(made);
        process::run(Command::new("cp").arg("--sparse=always").arg(&disk).arg(&below))?;
    }
    [&disk, &below].into_iter().try_for_each(fs::remove_file)?;
    fs::remove_dir(&point)?;
    config["rootfs"]["diff_ids"] = diff_ids.into();
    manifest["layers"] = layers.into();
    let part = to.join("part");
    let write = |value: &Value, media_type: &Value| -> Result<Value> {
        fs::write(&part, serde_json::to_vec(value)?)?;
        add(to, &part, media_type.as_str().unwrap_or_default())
    };
    manifest["config"] = write(&config, &manifest["config"]["mediaType"].clone())?;
    let described = write(&manifest, &manifest["mediaType"].clone())?;
    fs::write(to.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({ "schemaVersion": 2, "manifests": [described] });
    Ok(fs::write(to.join("index.json"), serde_json::to_vec(&index)?)?)
}

/// Moves a file to the layout's blobs.
fn add(layout: &Path, part: &Path, media_type: &str) -> Result<Value> {
    let (digest, size) = digest::of_file(part)?;
    fs::rename(part, layout.join("blobs").join(digest.replace(':', "/")))?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": size }))
}

/// An ordinary layer, without whiteouts.
fn unpack(layer: &Path, root: &Path) -> Result<()> {
    let mut stream = Command::new("gzip").arg("-dc").arg(layer).stdout(Stdio::piped()).spawn()?;
    let tar = stream.stdout.take().context("gzip has no output")?;
    let mut unpack = Command::new("tar");
    unpack
        .args(["-xpf", "-", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C"])
        .arg(root)
        .stdin(tar);
    if !unpack.status()?.success() || !stream.wait()?.success() {
        bail!("unpacking {} failed", layer.display());
    }
    Ok(())
}

/// Blocks that `disk` has otherwise than `below`: the first sector of each, and its bytes.
fn changed(disk: &File, below: &File, mut found: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
    let (mut now, mut was) = ([0; BLOCK], [0; BLOCK]);
    let mut at = 0;
    while let Ok(data) = seek(disk, SeekFrom::Data(at)) {
        let end = seek(disk, SeekFrom::Hole(data))?;
        at = end;
        for offset in (data / BLOCK as u64 * BLOCK as u64..end).step_by(BLOCK) {
            disk.read_exact_at(&mut now, offset)?;
            below.read_exact_at(&mut was, offset)?;
            if now != was {
                found(offset as usize / SECTOR, &now)?;
            }
        }
    }
    Ok(())
}

/// Writes what `disk` has otherwise than `below`.
fn pack(disk: &Path, below: &Path, to: &Path) -> Result<()> {
    let (disk, below, file) = (File::open(disk)?, File::open(below)?, File::create(to)?);
    // The tar header names the size, which is known at the end.
    let mut zfile =
        Zfile { to: BufWriter::new(&file), held: Vec::new(), lengths: Vec::new(), raw: 0, stored: 512 };
    zfile.to.write_all(&[0; 4 * SECTOR])?;
    zfile.write(&lsmt_head(1 | 2 | 4, 0, 0))?;
    let mut index: Vec<(usize, usize, usize)> = Vec::new();
    changed(&disk, &below, |start, block| {
        let (place, len) = (zfile.raw as usize / SECTOR, BLOCK / SECTOR);
        match index.last_mut().filter(|last| last.0 + last.1 == start && last.1 < LONGEST) {
            Some(last) => last.1 += len,
            None => index.push((start, len, place)),
        }
        zfile.write(block)
    })?;
    let start = zfile.raw;
    index.resize(index.len().next_multiple_of(256), ((1 << 50) - 1, 0, 0));
    for (sector, len, place) in &index {
        zfile.write(&((*sector as u64) | (*len as u64) << 50).to_le_bytes())?;
        zfile.write(&(*place as u64).to_le_bytes())?;
    }
    zfile.write(&lsmt_head(2 | 4, start, index.len() as u64))?;
    let size = zfile.finish(&file, 3 * SECTOR as u64)?;
    let payload = size.next_multiple_of(SECTOR as u64);
    file.set_len(3 * SECTOR as u64 + payload + 1024)?;
    let record = format!("{} size={size}\n", size.to_string().len() + 9);
    file.write_all_at(&tar_header("overlaybd.pax", b'x', record.len() as u64), 0)?;
    file.write_all_at(record.as_bytes(), SECTOR as u64)?;
    Ok(file.write_all_at(&tar_header("overlaybd.commit", b'0', 0), 2 * SECTOR as u64)?)
}

fn lsmt_head(flags: u32, index: u64, entries: u64) -> [u8; BLOCK] {
    let mut head = [0; BLOCK];
    head[..8].copy_from_slice(b"LSMT\0\x01\x02\0");
    head[8..24].copy_from_slice(&[
        0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c, 0xa2, 0xd2, 0xc8, 0xec, 0x4f, 0xcf, 0xae, 0x8a,
    ]);
    head[24..28].copy_from_slice(&390u32.to_le_bytes());
    head[28..32].copy_from_slice(&flags.to_le_bytes());
    head[32..40].copy_from_slice(&index.to_le_bytes());
    head[40..48].copy_from_slice(&entries.to_le_bytes());
    head[48..56].copy_from_slice(&DEVICE.to_le_bytes());
    (head[132], head[133]) = (1, 1);
    head
}

/// Blocks, each compressed alone.
struct Zfile<'a> {
    to: BufWriter<&'a File>,
    held: Vec<u8>,
    lengths: Vec<u32>,
    raw: u64,
    stored: u64,
}

impl Zfile<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.raw += bytes.len() as u64;
        self.held.extend_from_slice(bytes);
        while self.held.len() >= BLOCK {
            let rest = self.held.split_off(BLOCK);
            self.block()?;
            self.held = rest;
        }
        Ok(())
    }

    fn block(&mut self) -> Result<()> {
        const SEED: u32 = 100_007;
        let packed = lz4_flex::block::compress(&self.held);
        self.to.write_all(&packed)?;
        self.to.write_all(&(!crc32c::crc32c_append(!SEED, &packed)).to_le_bytes())?;
        self.lengths.push(packed.len() as u32 + 4);
        self.stored += packed.len() as u64 + 4;
        Ok(())
    }

    /// Gives its bytes, which start at `at` in the file.
    fn finish(mut self, file: &File, at: u64) -> Result<u64> {
        if !self.held.is_empty() {
            self.block()?;
        }
        let table: Vec<u8> = self.lengths.iter().flat_map(|len| len.to_le_bytes()).collect();
        self.to.write_all(&table)?;
        let head = |flags: u64| {
            let mut head = [0; SECTOR];
            head[..8].copy_from_slice(b"ZFile\0\x01\0");
            head[8..24].copy_from_slice(b"tuji.yyf@Alibaba");
            head[24..28].copy_from_slice(&96u32.to_le_bytes());
            head[32..40].copy_from_slice(&flags.to_le_bytes());
            head[40..48].copy_from_slice(&self.stored.to_le_bytes());
            head[48..56].copy_from_slice(&(self.lengths.len() as u64).to_le_bytes());
            head[56..64].copy_from_slice(&self.raw.to_le_bytes());
            head[64..68].copy_from_slice(&crc(&table).to_le_bytes());
            head[72..76].copy_from_slice(&(BLOCK as u32).to_le_bytes());
            // lz4, with checksums.
            (head[76], head[88]) = (1, 1);
            let digest = crc(&head);
            head[28..32].copy_from_slice(&digest.to_le_bytes());
            head
        };
        self.to.write_all(&head(0x16))?;
        self.to.flush()?;
        file.write_all_at(&head(0x1b), at)?;
        Ok(self.stored + table.len() as u64 + SECTOR as u64)
    }
}

fn crc(bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!0, bytes)
}

fn tar_header(name: &str, kind: u8, size: u64) -> [u8; SECTOR] {
    let mut header = [0; SECTOR];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0100644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}
