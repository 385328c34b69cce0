//! The lowest layers of an image, as containerd knows them: by chain ID, and each a root of its own.

use std::fs;
use std::os::unix::fs::MetadataExt;

use hoist_format::digest::Digest;
use serde_json::Value;

use crate::config::Trust;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::oci::parse;

impl Image {
    /// What each layer is called together with all below it (OCI image-spec v1.1, "Layer ChainID"), lowest
    /// first.
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.config.rootfs.diff_ids.len());
        for diff_id in &self.config.rootfs.diff_ids {
            chain.push(match chain.last() {
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
                None => *diff_id,
            });
        }
        chain
    }
}

impl Engine {
    /// Can the image be mounted before its layers are here, or are they all here? Else whoever mounts it has all of it
    /// fetched first. Asks the registry where only that tells.
    pub async fn mounts_at_once(&self, image: &Image) -> bool {
        let has_index = self.config.trust == Trust::Registry && image.index.is_some();
        let whole_first = self.config.trust != Trust::Registry && image.is_unvouched();
        let in_parts = async || !whole_first && self.reads_as_it_is(image).await;
        has_index || self.is_all_here(&image.digest) || in_parts().await
    }

    /// An image of the lowest `layers` layers alone. Nothing is fetched.
    ///
    /// # Errors
    /// There are not so many, or what is here of the image is damaged.
    pub fn lowest(&self, image: &Image, layers: usize) -> Result<Image, Error> {
        let bad = |why: &str| Error::image("manifest", image.digest, why);
        let known = self.store.image(&image.digest).load(&image.digest);
        let (manifest, config) = known.ok_or_else(|| bad("it is not in the store"))?;
        let mut manifest: Value = parse("manifest", &image.digest, &manifest)?;
        let mut config: Value = parse("config", &image.manifest.config.digest, &config)?;
        let cut = |list: Option<&mut Value>| match list.and_then(Value::as_array_mut) {
            Some(list) if (1..=list.len()).contains(&layers) => {
                list.truncate(layers);
                Ok(())
            }
            _ => Err(bad("it has not that many layers")),
        };
        cut(manifest.get_mut("layers"))?;
        cut(config.pointer_mut("/rootfs/diff_ids"))?;
        if let Some(config) = config.as_object_mut() {
            // Of all layers.
            config.remove("history");
        }
        let bytes = |value: &Value| serde_json::to_vec(value).map_err(|e| Error::Internal(e.to_string()));
        let config = bytes(&config)?;
        if let Some(descriptor) = manifest.get_mut("config").and_then(Value::as_object_mut) {
            descriptor.insert("digest".into(), Digest::of(&config).to_string().into());
            descriptor.insert("size".into(), config.len().into());
        }
        let manifest = bytes(&manifest)?;
        let digest = Digest::of(&manifest);
        self.store.image(&digest).save(&manifest, &config)?;
        Ok(Image {
            digest,
            manifest: parse("manifest", &digest, &manifest)?,
            config: parse("config", &digest, &config)?,
            manifest_bytes: manifest.into(),
            index: None,
            no_index: Some(format!(
                "only the lowest {layers} of its layers are mounted, and an index is of all of them"
            )),
            ..image.clone()
        })
    }

    /// What a layer takes on disk, in all its layouts: bytes and files.
    pub fn disk_usage(&self, blob: &Digest) -> (u64, u64) {
        let all = [self.store.layer(blob, None)].into_iter().chain(self.store.published_layouts(blob));
        let files = all.flat_map(|layer| fs::read_dir(layer.path()).into_iter().flatten().flatten());
        let sizes = files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512));
        sizes.fold((0, 0), |(bytes, files), size| (bytes + size, files + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn the_lowest_layers_are_an_image_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("layer.tar");
        fs::write(&tar, [0; 1024]).unwrap();
        let mut builder = hoist_testkit::layout::Builder::new(dir.path().join("layout")).unwrap();
        for _ in 0..3 {
            builder = builder.layer(&tar, hoist_testkit::layout::Compression::None).unwrap();
        }
        let built = builder.write("v1").unwrap();
        let engine = Engine::open(Config::new(dir.path().join("store"))).unwrap();
        let image = engine.resolve(&format!("oci:{}:v1", built.directory.display())).await.unwrap();
        let two = engine.lowest(&image, 2).unwrap();
        assert_ne!(two.digest, image.digest);
        assert_eq!(two.chain_ids(), image.chain_ids()[..2]);
        let twice = format!("{0} {0}", built.diff_ids[0]);
        assert_eq!(two.chain_ids()[1], Digest::of(twice.as_bytes()));
        assert_eq!(engine.known(&two.name, two.digest).await.unwrap().unwrap().chain_ids(), two.chain_ids());
        assert!(engine.lowest(&image, 4).is_err() && engine.lowest(&image, 0).is_err());
    }
}
