//! Is everything in the store what it should be? Every document and tree is decoded and held against its
//! digest, every extent that counts as present is read from the disk and hashed.
//!
//! What is mounted is only reported on: a bit that is cleared under a reader would have to be filled before
//! the reader comes, and a file that the kernel reads by itself asks nobody.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use hoist_format::digest::Digest;
use hoist_format::erofs;
use hoist_format::table::Table;
use hoist_sys::shm::SharedBits;
use serde::Serialize;

use crate::engine::Engine;
use crate::error::Error;
use crate::oci::Manifest;
use crate::store::usage::Clearing;
use crate::store::{Digests, LayerDir, LayerState, RefRecord, Store};

/// What a check found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Checked {
    /// Names looked at.
    pub names: usize,
    /// Images looked at.
    pub images: usize,
    /// Layers looked at.
    pub layers: usize,
    /// Extents read and hashed.
    pub extents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Extents that are not what they should be.
    pub bad_extents: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// The file or folder, as it is called in the store.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
    /// What was done about it, or has to be.
    pub outcome: String,
    /// It is as it should be again, or will be fetched again.
    pub repaired: bool,
}

/// What can be done about a problem of a layer.
enum Remedy {
    /// These extents are fetched again when they are wanted.
    Refetch { present: Vec<u8> },
    /// Nothing of the layer can be used.
    Discard,
    /// This file can be done without.
    Remove(&'static str),
}

impl Engine {
    /// Checks the whole store; mends what is wrong and not mounted, if asked. Blocks.
    ///
    /// # Errors
    /// When the store itself cannot be read; what is wrong in it is no error.
    pub fn fsck(&self, repair: bool) -> Result<Checked, Error> {
        let mut checked = Checked::default();
        if let (_, Some(why)) = Store::open_damaged(self.store.root())? {
            let outcome = match repair {
                true => self.store.mend_version().map_err(|_| "it cannot be written"),
                false => {
                    Err("`hoist fsck --repair` mends it; nothing but `fsck` and `unmount` works until then")
                }
            };
            let path = self.store.root().join("version");
            self.report(&mut checked, &path, format!("the store {why}"), outcome.map(|()| "written anew"));
        }
        for name in self.store.layer_names()? {
            let path = self.store.root().join("layers").join(name);
            let Some(dir) = LayerDir::at(&path) else { continue };
            checked.layers += 1;
            if let Err(why) = self.can_be_read(&dir) {
                let outcome = Err("not checked: its data cannot be read without that process");
                self.report(&mut checked, &path, why.to_string(), outcome);
                continue;
            }
            for (why, remedy) in check_layer(&dir, &mut checked) {
                let repair = repair.then(|| self.store.clearing()).transpose()?;
                let outcome = mend_layer(&dir, &remedy, repair);
                self.report(&mut checked, &path, why, outcome);
            }
        }
        for digest in self.store.image_digests()? {
            checked.images += 1;
            for (path, why) in self.check_image(&digest)? {
                let repair = repair.then(|| self.store.clearing()).transpose()?;
                if repair.is_some() && !self.check_image(&digest)?.iter().any(|(still, _)| *still == path) {
                    // Written anew until its turn came.
                    continue;
                }
                let outcome = match repair {
                    Some(clearing) if clearing.uses_image(&digest) => Err("its image is mounted: unmount it"),
                    Some(_) if path.is_dir() => fs::remove_dir_all(&path).map_err(|_| "it cannot be removed"),
                    Some(_) => fs::remove_file(&path).map_err(|_| "it cannot be removed"),
                    None => Err("`hoist fsck --repair` removes it"),
                };
                self.report(
                    &mut checked,
                    &path,
                    why,
                    outcome.map(|()| "removed: it is made or fetched anew"),
                );
            }
        }
        self.check_names(repair, &mut checked)?;
        Ok(checked)
    }

    /// Does everybody answer who is asked when the layer's data is read?
    fn can_be_read(&self, dir: &LayerDir) -> Result<(), Error> {
        let path = dir.file("data");
        match File::open(&path).and_then(|data| Ok((data.metadata()?.len(), data))) {
            Ok((size, data)) => {
                crate::mount::all_answer(&self.store, (&data, &path), size, self.config.read_timeout)
            }
            // What that means is found out by the check.
            Err(_) => Ok(()),
        }
    }

    fn report(
        &self,
        checked: &mut Checked,
        path: &Path,
        why: String,
        outcome: Result<&'static str, &'static str>,
    ) {
        let path = path.strip_prefix(self.store.root()).unwrap_or(path).display().to_string();
        let (Ok(text) | Err(text)) = outcome;
        checked.problems.push(Problem { path, why, outcome: text.to_owned(), repaired: outcome.is_ok() });
    }

    fn check_names(&self, repair: bool, checked: &mut Checked) -> Result<(), Error> {
        let dir = self.store.root().join("refs");
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))?.flatten() {
            checked.names += 1;
            let Some(why) = self.name_trouble(&entry.path()) else { continue };
            // It may have been forgotten, and its image taken away, between the two looks; or found anew.
            let _clearing = repair.then(|| self.store.clearing()).transpose()?;
            if self.name_trouble(&entry.path()).as_ref() != Some(&why) {
                continue;
            }
            let outcome = match repair {
                true => fs::remove_file(entry.path()).map_err(|_| "it cannot be removed"),
                false => Err("`hoist fsck --repair` removes it"),
            };
            self.report(
                checked,
                &entry.path(),
                why,
                outcome.map(|()| "removed: the registry is asked again"),
            );
        }
        Ok(())
    }

    /// What is wrong with the record of a name, if it is still there.
    fn name_trouble(&self, path: &Path) -> Option<String> {
        let bytes = match fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            bytes => bytes.unwrap_or_default(),
        };
        match serde_json::from_slice::<RefRecord>(&bytes) {
            Err(e) => Some(format!("is no record of a name: {e}")),
            Ok(record) => self
                .store
                .image(&record.manifest)
                .load(&record.manifest)
                .is_none()
                .then(|| format!("{} means image {}, which is not here", record.name, record.manifest)),
        }
    }

    /// The parts of an image's folder that are not what they should be.
    fn check_image(&self, digest: &Digest) -> Result<Vec<(std::path::PathBuf, String)>, Error> {
        let dir = self.store.image(digest);
        // What somebody takes away meanwhile is not damaged.
        let Some(_held) = dir.hold()? else { return Ok(Vec::new()) };
        if !dir.has_manifest() {
            // Whoever fetched it was killed before it was there.
            return Ok(Vec::new());
        }
        let Some((manifest, config)) = dir.load(digest) else {
            let why = "its manifest has another digest, or is not here";
            return Ok(vec![(dir.path().to_owned(), why.into())]);
        };
        let config_is_right = serde_json::from_slice::<Manifest>(&manifest)
            .is_ok_and(|manifest| Digest::of(&config) == manifest.config.digest);
        if !config_is_right {
            return Ok(vec![(dir.path().to_owned(), "its configuration has another digest".into())]);
        }
        let mut bad = Vec::new();
        for entry in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "erofs") {
                let sum = fs::read_to_string(path.with_extension("sum"));
                let decoded = fs::read(&path).map_err(|e| e.to_string());
                if let (Ok(sum), Ok(bytes)) = (sum, &decoded)
                    && sum != blake3::hash(bytes).to_hex().as_str()
                {
                    bad.push((path, "its tree is not what was written".to_owned()));
                    continue;
                }
                if let Err(e) = decoded.and_then(|bytes| erofs::decode(&bytes).map_err(|e| e.to_string())) {
                    bad.push((path, format!("its tree cannot be read: {e}")));
                }
            }
        }
        Ok(bad)
    }
}

/// What is wrong with a layer.
fn check_layer(dir: &LayerDir, checked: &mut Checked) -> Vec<(String, Remedy)> {
    // What somebody takes away meanwhile is not damaged.
    let Ok(Some(_here)) = dir.hold_what_is_here() else { return Vec::new() };
    let state = dir.state();
    if state.lied.is_some() {
        return Vec::new();
    }
    let Some(bytes) = dir.table_bytes() else {
        let missing = ("it is complete, but its table is not here".to_owned(), Remedy::Discard);
        return if state.complete { vec![missing] } else { Vec::new() };
    };
    let table = match Table::decode(&bytes) {
        Ok(table) => table,
        Err(e) => return vec![(format!("its table is damaged: {e}"), Remedy::Discard)],
    };
    let mut wrong = Vec::new();
    if let Ok(tree) = fs::read(dir.file("tree"))
        && let Err(e) = erofs::decode(&tree)
    {
        wrong.push((format!("its tree is damaged: {e}"), Remedy::Discard));
    }
    wrong.extend(check_windows(dir, &table));
    let n = table.extents.extents.len();
    if dir.file("present").exists() && !dir.has_sound_presence(n) {
        wrong.push(("its map of what is present is damaged".to_owned(), Remedy::Remove("present")));
    }
    let mut present = presence(dir, &state, n);
    let bad = check_extents(dir, &table, &present, checked);
    if !bad.is_empty() {
        bad.iter().for_each(|&i| present[i / 8] &= !(1 << (i % 8)));
        checked.bad_extents += bad.len() as u64;
        let why = format!("{} of its {n} extents are not what they should be", bad.len());
        wrong.push((why, Remedy::Refetch { present }));
    }
    wrong
}

fn check_windows(dir: &LayerDir, table: &Table) -> Option<(String, Remedy)> {
    let windows = File::open(dir.file("windows")).ok()?;
    let states = (0..table.spans.len()).map(|i| table.spans.state(i)).filter(|state| state.len > 0);
    let damaged = states.into_iter().any(|state| {
        let mut bytes = vec![0; state.len as usize];
        let read = windows.read_exact_at(&mut bytes, state.offset);
        // Those of a published index are there as far as they were wanted.
        let absent = dir.is_published() && (read.is_err() || bytes.iter().all(|byte| *byte == 0));
        !absent && (read.is_err() || *blake3::hash(&bytes).as_bytes() != state.digest)
    });
    damaged.then(|| ("its gzip windows are damaged".to_owned(), Remedy::Remove("windows")))
}

/// One bit for each extent that counts as present.
fn presence(dir: &LayerDir, state: &LayerState, n: usize) -> Vec<u8> {
    let mut bits = dir.load_presence(n);
    let live = SharedBits::open_existing(&dir.file("live"), n as u64).ok().flatten();
    for i in 0..n {
        if state.complete || live.as_ref().is_some_and(|live| live.get(i as u64)) {
            bits[i / 8] |= 1 << (i % 8);
        }
    }
    bits
}

/// The extents that count as present and have another digest, or cannot be read.
fn check_extents(dir: &LayerDir, table: &Table, present: &[u8], checked: &mut Checked) -> Vec<usize> {
    let data = File::open(dir.file("data"));
    let digests = Digests::existing(dir, table);
    let mut bytes = Vec::new();
    let mut bad = Vec::new();
    for (i, extent) in table.extents.extents.iter().enumerate() {
        if present[i / 8] >> (i % 8) & 1 == 0 {
            continue;
        }
        bytes.resize(extent.len as usize, 0);
        let read = data.as_ref().is_ok_and(|data| {
            // The disk is asked, not the page cache.
            let _ = hoist_sys::file::fadvise_dontneed(data, extent.data_offset, extent.len);
            data.read_exact_at(&mut bytes, extent.data_offset).is_ok()
        });
        checked.extents += 1;
        checked.bytes += extent.len;
        if !read || digests.wanted(i, extent) != Some(*blake3::hash(&bytes).as_bytes()) {
            bad.push(i);
        }
    }
    bad
}

/// `clearing`: as it is to be mended; None where it is only to be told.
fn mend_layer(
    dir: &LayerDir,
    remedy: &Remedy,
    clearing: Option<Clearing>,
) -> Result<&'static str, &'static str> {
    let Some(clearing) = clearing else { return Err("`hoist fsck --repair` mends it") };
    let in_use = Err("the layer is in use and left as it is: unmount its images and repair then");
    if clearing.uses_layer(dir.path()) {
        return in_use;
    }
    let cannot = |_: Error| "it cannot be mended: see the store's file system";
    match remedy {
        Remedy::Discard => {
            if !clearing.take_away(dir.path()).map_err(cannot)? {
                return in_use;
            }
            clearing.delete().map_err(cannot)?;
            Ok("the layer was thrown away: it is fetched again")
        }
        Remedy::Remove(name) => {
            fs::remove_file(dir.file(name)).map_err(|_| "it cannot be removed")?;
            Ok("removed: it is made or fetched anew")
        }
        Remedy::Refetch { present } => {
            let state = LayerState::default();
            // In this order nothing counts as present at any instant that did not before.
            let mend = || {
                for name in ["live", "kept", "blob"] {
                    dir.remove(name)?;
                }
                dir.save_presence(present)?;
                crate::store::sync_dir(dir.path())?;
                dir.save_state(&state)
            };
            mend().map_err(cannot)?;
            Ok("they do not count as present any more: they are fetched again")
        }
    }
}
