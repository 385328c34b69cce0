//! From a place in a layer's data file back to the file that has it: what a person calls the bytes.

use std::collections::BTreeSet;

use super::image::Image;
use super::{DecodeError, NodeKind};

impl Image<'_> {
    /// A path of the file whose bytes stand at `offset` of the data file of `layer`, without a leading `/`; None
    /// where no file's do. Looks through the whole tree.
    ///
    /// # Errors
    /// [`DecodeError::Inode`].
    pub fn owner_of(&self, layer: u16, offset: u64) -> Result<Option<Vec<u8>>, DecodeError> {
        let mut folders = vec![(Vec::new(), self.root())];
        // A damaged image may have a folder within itself.
        let mut seen = BTreeSet::from([self.root()]);
        while let Some((path, nid)) = folders.pop() {
            let folder = self.inode(nid)?;
            for entry in self.entries(&folder) {
                let entry = entry?;
                if entry.name == b"." || entry.name == b".." {
                    continue;
                }
                let node = self.inode(entry.nid)?;
                let path = [&path[..], if path.is_empty() { b"" } else { b"/" }, entry.name].concat();
                match &node.kind {
                    NodeKind::Dir if seen.insert(entry.nid) => folders.push((path, entry.nid)),
                    NodeKind::File(data)
                        if data.layer == layer
                            && offset.checked_sub(data.offset).is_some_and(|at| at < node.size) =>
                    {
                        return Ok(Some(path));
                    }
                    _ => {}
                }
            }
        }
        Ok(None)
    }
}
