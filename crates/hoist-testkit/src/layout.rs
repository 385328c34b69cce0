//! OCI image layouts made of ordinary layer tars, compressed by the real `gzip`, `pigz` and `zstd`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::digest;

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// `gzip -LEVEL`.
    Gzip(u8),
    /// `pigz -LEVEL`: parallel, one member, with the deflate blocks of several threads.
    Pigz(u8),
    /// `zstd -LEVEL`: one frame.
    Zstd(u8),
}

/// Which family of media types the manifest speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MediaTypes {
    /// OCI image specification 1.
    #[default]
    Oci,
    /// Docker image manifest version 2, schema 2.
    Docker,
}

/// Builds one layout holding one image.
#[derive(Debug)]
pub struct Builder {
    directory: PathBuf,
    media_types: MediaTypes,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
    config: Value,
}

/// The image that was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// The layout's folder.
    pub directory: PathBuf,
    /// The digest of the manifest.
    pub manifest: String,
    /// The digests of the layers' blobs, lowest layer first.
    pub layers: Vec<String>,
    /// The digests of the layers' uncompressed tars.
    pub diff_ids: Vec<String>,
}

impl Builder {
    /// Starts a layout in `directory`, made if missing.
    pub fn new(directory: impl Into<PathBuf>) -> Result<Self> {
        let directory = directory.into();
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).with_context(|| format!("creating {}", blobs.display()))?;
        Ok(Self {
            directory,
            media_types: MediaTypes::Oci,
            layers: Vec::new(),
            diff_ids: Vec::new(),
            config: json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}),
        })
    }

    /// Chooses the family of media types; before the first layer.
    pub fn media_types(mut self, media_types: MediaTypes) -> Self {
        self.media_types = media_types;
        self
    }

    /// Sets a field of the image configuration's `config`, such as `Cmd`, `Env`, `User`, `WorkingDir`.
    pub fn config(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// Adds a layer from an uncompressed tar file.
    pub fn layer(mut self, tar: &Path, compression: Compression) -> Result<Self> {
        let (diff_id, _) = digest::of_file(tar)?;
        let packed = self.directory.join(format!("layer-{}.part", self.layers.len()));
        compress(tar, &packed, compression)?;
        let (blob, size) = digest::of_file(&packed)?;
        std::fs::rename(&packed, self.blob_path(&blob))?;
        self.add(media_type(self.media_types, compression)?, blob, size, diff_id);
        Ok(self)
    }

    /// Adds a layer whose stored bytes, media type and diffID the caller makes up: for bad input.
    pub fn raw_layer(mut self, media_type: &str, blob: &[u8], diff_id: &str) -> Result<Self> {
        let digest = digest::of_bytes(blob);
        std::fs::write(self.blob_path(&digest), blob)?;
        self.add(media_type, digest, blob.len() as u64, diff_id.to_owned());
        Ok(self)
    }

    /// Writes configuration, manifest and `index.json`, where the image is called `tag`.
    pub fn write(self, tag: &str) -> Result<Built> {
        let (manifest_type, config_type) = match self.media_types {
            MediaTypes::Oci => {
                ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json")
            }
            MediaTypes::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
        };
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        let config = self.write_json(&config, config_type)?;
        let manifest =
            json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": self.layers});
        let mut manifest = self.write_json(&manifest, manifest_type)?;
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        manifest["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest],
        });
        std::fs::write(self.directory.join("index.json"), serde_json::to_vec_pretty(&index)?)?;
        std::fs::write(self.directory.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
        let text = |v: &Value| v["digest"].as_str().unwrap_or_default().to_owned();
        Ok(Built {
            manifest: text(&manifest),
            layers: self.layers.iter().map(text).collect(),
            diff_ids: self.diff_ids,
            directory: self.directory,
        })
    }

    fn add(&mut self, media_type: &str, digest: String, size: u64, diff_id: String) {
        self.layers.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
        self.diff_ids.push(diff_id);
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.directory.join("blobs").join(digest.replace(':', "/"))
    }

    fn write_json(&self, value: &Value, media_type: &str) -> Result<Value> {
        let bytes = serde_json::to_vec(value)?;
        let digest = digest::of_bytes(&bytes);
        std::fs::write(self.blob_path(&digest), &bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    }
}

/// Go's name for this machine's architecture, as images use it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn media_type(family: MediaTypes, compression: Compression) -> Result<&'static str> {
    Ok(match (family, compression) {
        (MediaTypes::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
        (MediaTypes::Oci, Compression::Zstd(_)) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (MediaTypes::Oci, _) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (MediaTypes::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
        (MediaTypes::Docker, Compression::Zstd(_)) => {
            bail!("Docker schema 2 has no zstd layers: use MediaTypes::Oci")
        }
        (MediaTypes::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
    })
}

fn compress(tar: &Path, to: &Path, compression: Compression) -> Result<()> {
    let (tool, args) = match compression {
        Compression::None => ("cat", vec![]),
        Compression::Gzip(level) => ("gzip", vec![format!("-{level}"), "-nc".into()]),
        Compression::Pigz(level) => ("pigz", vec![format!("-{level}"), "-nc".into()]),
        Compression::Zstd(level) => ("zstd", vec![format!("-{level}"), "-qc".into()]),
    };
    let status = Command::new(tool)
        .args(args)
        .stdin(Stdio::from(File::open(tar).with_context(|| format!("opening {}", tar.display()))?))
        .stdout(Stdio::from(File::create(to).with_context(|| format!("creating {}", to.display()))?))
        .status()
        .with_context(|| {
            format!("starting {tool} (is it installed? `make deps` installs what tests need)")
        })?;
    if !status.success() {
        bail!("{tool} on {} failed with {status}", tar.display());
    }
    Ok(())
}
