//! The parts of OCI image-spec v1.1 and Docker schema 2 documents that the engine reads and writes.

use std::collections::BTreeMap;

use hoist_format::digest::Digest;
use hoist_format::formats::Listed;
use hoist_format::span::Codec;
use serde::{Deserialize, Serialize};

use crate::config::Platform;
use crate::error::Error;

/// Media types by name.
pub mod media {
    pub use crate::registry::{DOCKER_LIST, OCI_INDEX as INDEX, OCI_MANIFEST as MANIFEST};
    /// The empty config of an artifact.
    pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
}

/// Reads a document, `what`, that was found by its digest.
///
/// # Errors
/// It is not what it should be.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    what: &'static str,
    of: &Digest,
    bytes: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::image(what, of, format!("it is not the JSON expected: {e}")))
}

/// Reads an image's configuration.
///
/// # Errors
/// It is none. What is no image at all, but stands beside one, is told apart.
pub(crate) fn parse_config(of: &Digest, bytes: &[u8]) -> Result<ImageConfig, Error> {
    parse("config", of, bytes).map_err(|e| {
        let object: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(bytes).ok();
        match object.is_some_and(|object| !object.contains_key("rootfs")) {
            true => {
                let why = "it names no layers (rootfs): this is no container image, but what some tool keeps beside one; give the name of the image itself";
                Error::image("config", of, why)
            }
            false => e,
        }
    })
}

/// Names a blob or manifest.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Notes about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: for which machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    /// In an index of referrers: what the manifest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// A platform as an index writes it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct DescriptorPlatform {
    /// CPU architecture.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// CPU variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// What the operating system must be able to do.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

/// An image manifest, or an artifact's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Image config.
    pub config: Descriptor,
    /// Lowest layer first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// What an artifact is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A multi-arch index or list.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// An image config (image-spec `config.md`).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// How to run it.
    #[serde(default)]
    pub config: Option<RunConfig>,
    /// Its layers.
    pub rootfs: RootFs,
    /// CPU architecture.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// CPU variant.
    #[serde(default)]
    pub variant: Option<String>,
}

/// The `config` object of an image config.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user[:group]`.
    pub user: String,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// Comes before the command.
    pub entrypoint: Option<Vec<String>>,
    /// The command, or the entrypoint's arguments.
    pub cmd: Option<Vec<String>>,
    /// Where it starts.
    pub working_dir: String,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Signal that stops it.
    pub stop_signal: Option<String>,
}

/// The `rootfs` object of an image config.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// Digests of the uncompressed layers, lowest first.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

impl Index {
    /// The manifest of an image for `wanted`; without a variant asked for, the first of that architecture. Of an image
    /// that is there plain and `converted`, as that says.
    pub fn select(&self, wanted: &Platform, converted: bool, of: &str) -> Result<&Descriptor, Error> {
        let variant = |variant: &Option<String>| variant_of(&wanted.architecture, variant.as_deref());
        let fits = |d: &&Descriptor| {
            d.platform.as_ref().is_some_and(|p| {
                p.os == wanted.os
                    && p.architecture == wanted.architecture
                    && (wanted.variant.is_none() || variant(&p.variant) == variant(&wanted.variant))
            })
        };
        let listed = |d: &Descriptor| {
            let features = d.platform.as_ref().map_or(&[][..], |p| &p.os_features);
            Listed::of(features, d.artifact_type.as_deref(), &d.annotations)
        };
        let images: Vec<&Descriptor> = self.manifests.iter().filter(|d| listed(d) != Listed::About).collect();
        let mut fitting = images.iter().copied().filter(fits);
        if let Some(first) = fitting.next() {
            let is_of_kind = |d: &&Descriptor| (listed(d) == Listed::Converted) == converted;
            let of_kind = [first].into_iter().chain(fitting).find(is_of_kind);
            return Ok(of_kind.unwrap_or(first));
        }
        if let [only] = images[..]
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let have: Vec<_> = images
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .map(|p| match &p.variant {
                Some(variant) => format!("{}/{}/{variant}", p.os, p.architecture),
                None => format!("{}/{}", p.os, p.architecture),
            })
            .collect();
        Err(Error::image("index", of, format!("it has no image for {wanted}, only for: {}", have.join(", "))))
    }
}

/// A variant as images mean it: arm64 is v8 and arm is v7 where none is told (containerd `platforms`).
fn variant_of(architecture: &str, variant: Option<&str>) -> Option<String> {
    let known = match (architecture, variant.unwrap_or_default()) {
        ("arm64", "" | "8") => "v8",
        ("arm", "" | "7") => "v7",
        ("arm", "6") => "v6",
        ("arm", "5") => "v5",
        (_, told) => told,
    };
    (!known.is_empty()).then(|| known.to_owned())
}

/// How a layer of that media type is stored; None for types that are no tar layers.
pub fn codec_of(media_type: &str) -> Option<Codec> {
    let tar = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.tar")
        .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar"))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar"))?;
    match tar {
        "" => Some(Codec::Plain),
        "+gzip" | ".gzip" => Some(Codec::Gzip),
        "+zstd" | ".zstd" => Some(Codec::Zstd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_chosen() {
        let entry = |number: usize, platform: &str| {
            let mut parts = platform.split('/').map(str::to_owned);
            let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
            Descriptor {
                media_type: String::new(),
                digest: Digest::of(&[number as u8]),
                size: 1,
                annotations: BTreeMap::new(),
                platform: Some(DescriptorPlatform {
                    architecture,
                    os,
                    variant: parts.next(),
                    os_features: Vec::new(),
                }),
                artifact_type: None,
            }
        };
        let list = [
            "unknown/unknown",
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/arm64",
            "linux/amd64",
            "linux/amd64/v3",
        ];
        let manifests = list.iter().enumerate().map(|(number, platform)| entry(number, platform)).collect();
        let index = Index { manifests };
        let chosen = |wanted: &str| {
            let found = index.select(&wanted.parse().unwrap(), false, "x").ok()?.digest;
            list.iter().enumerate().find(|(number, _)| Digest::of(&[*number as u8]) == found).map(|(_, p)| *p)
        };
        for (wanted, found) in [
            ("linux/arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm", "linux/arm/v5"),
        ] {
            assert_eq!(chosen(wanted), Some(found), "{wanted}");
        }
        for wanted in ["linux/arm/v6", "linux/arm64/v9", "windows/amd64", "linux/s390x"] {
            assert_eq!(chosen(wanted), None, "{wanted}");
        }
        let said = index.select(&"linux/s390x".parse().unwrap(), false, "x").unwrap_err().to_string();
        assert!(said.contains("linux/arm/v5, linux/arm/v7"), "{said}");
        for bad in ["linux", "linux/", "/amd64", "linux/arm64/v8/x", "linux/arm64/", ""] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
