//! Any bytes as what a registry says: manifest, index, image config, a published index's manifest, and the store's document
//! of a conversion; and as what a user types
//! or a registry's header holds: image names and digests. Errors are fine, panics are bugs, and a name that is taken means
//! the same when it is read again.
#![no_main]

use std::str::FromStr;

use hoist_engine::Platform;
use hoist_engine::oci::{ImageConfig, Index, Manifest, codec_of};
use hoist_engine::publish::PublishedIndex;
use hoist_engine::reference::{Reference, Source};
use hoist_format::digest::Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(data) {
        for layer in &manifest.layers {
            let _ = codec_of(&layer.media_type);
        }
        if let Some(subject) = &manifest.subject {
            let _ = PublishedIndex::parse(data.to_vec().into(), &subject.digest);
            let _ = PublishedIndex::parse_converted(data.to_vec().into(), &subject.digest);
        }
        let written = serde_json::to_vec(&manifest).expect("it came from JSON");
        serde_json::from_slice::<Manifest>(&written).expect("it was just written");
    }
    if let Ok(index) = serde_json::from_slice::<Index>(data) {
        let _ = index.select(&Platform::default(), data.len() % 2 == 0, "fuzz");
    }
    let _ = serde_json::from_slice::<ImageConfig>(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    let _ = text.parse::<Platform>();
    let _ = Source::from_str(text);
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().as_ref().ok(), Some(&reference));
    }
});
