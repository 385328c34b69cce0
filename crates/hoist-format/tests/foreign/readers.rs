//! The readers of formats, asked as the engine asks them.

use std::collections::HashMap;
use std::fs;

use hoist_format::digest::Digest;
use hoist_format::formats::{Covers, Found, ImageFacts, LayerFacts, Refusal, Step, Want, readers};
use hoist_format::merge::merge;
use hoist_format::tree::Tree;

use crate::fixture::data_file;
use crate::unpacked::{Allowed, blob, compare, fixtures, layers, manifest};

fn facts(image: &str, unpinned: bool) -> ImageFacts {
    let layer = |(descriptor, bytes): (serde_json::Value, Vec<u8>)| LayerFacts {
        media_type: descriptor["mediaType"].as_str().unwrap().to_owned(),
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
        annotations: serde_json::from_value(descriptor["annotations"].clone()).unwrap_or_default(),
    };
    let layers = layers(image).into_iter().map(layer).collect();
    let (digest, manifest) = manifest(image);
    let annotations = serde_json::from_value(manifest["annotations"].clone()).unwrap_or_default();
    ImageFacts { digest, annotations, layers, unpinned }
}

/// What stands in a layout beside its image.
fn referrers(image: &str, artifact_type: &str) -> Vec<u8> {
    let index = fs::read(fixtures().join(image).join("index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    index["manifests"].as_array_mut().unwrap().retain(|m| m["artifactType"] == artifact_type);
    serde_json::to_vec(&index).unwrap()
}

/// What each reader found, and the bytes that all of them asked for.
fn ask(image: &str, facts: &ImageFacts) -> (Vec<Result<Found, Refusal>>, u64) {
    let mut bytes = 0;
    let mut outcomes = Vec::new();
    for mut reader in readers(facts) {
        let mut answers = Vec::new();
        let outcome = loop {
            match reader.step(std::mem::take(&mut answers)) {
                Ok(Step::Done(found)) => break Ok(found),
                Err(refusal) => break Err(refusal),
                Ok(Step::Fetch(wants)) => {
                    for want in wants {
                        let answer = match want {
                            Want::Range { blob: digest, range } => blob(image, &digest.to_string())
                                [range.start as usize..range.end as usize]
                                .to_vec(),
                            Want::Blob { blob: digest, .. } | Want::Manifest(digest) => {
                                blob(image, &digest.to_string())
                            }
                            Want::Size(digest) => {
                                let size = blob(image, &digest.to_string()).len() as u64;
                                answers.push(Some(size.to_le_bytes().to_vec()));
                                continue;
                            }
                            Want::Referrers(artifact_type) => referrers(image, artifact_type),
                            other => panic!("{other:?}"),
                        };
                        bytes += answer.len() as u64;
                        answers.push(Some(answer));
                    }
                }
            }
        };
        outcomes.push(outcome);
    }
    (outcomes, bytes)
}

fn check(image: &str, format: &str, pinned: bool, allowed: &Allowed) -> u64 {
    let facts = facts(image, true);
    let (outcomes, bytes) = ask(image, &facts);
    let mut parts = Vec::new();
    for outcome in outcomes {
        let found = match outcome {
            Err(Refusal::Other) => continue,
            outcome => outcome.unwrap(),
        };
        assert!(found.format.starts_with(format), "{}", found.format);
        assert_eq!(found.pinned, pinned);
        parts.extend(found.parts);
    }
    let whole = parts.len() == 1 && parts[0].0 == Covers::Image;
    assert!(whole || parts.iter().map(|p| p.0).eq((0..facts.layers.len()).map(Covers::Layer)));
    let mut blobs = HashMap::new();
    for (_, described) in &parts {
        for known in described.table.spans.blobs() {
            blobs.insert(known.digest, blob(image, &known.digest.to_string()));
        }
    }
    let data: Vec<Vec<u8>> = parts.iter().map(|(_, described)| data_file(described, &blobs)).collect();
    let trees: Vec<&Tree> = parts.iter().map(|(_, described)| &described.tree).collect();
    compare(&merge(&trees).unwrap(), allowed, |_, place, size| {
        data[usize::from(place.layer)][place.offset as usize..(place.offset + size) as usize].to_vec()
    });
    bytes
}

#[test]
fn overlaybd_asks_for_metadata_alone() {
    let without = |path: &str| path == "ids/big";
    let bytes = check(
        "overlaybd",
        "overlaybd 0.1.0 (ext4)",
        false,
        &Allowed { more: &["lost+found"], without, ..Allowed::default() },
    );
    assert!(bytes < 800 << 10, "{bytes}");
}

#[test]
fn turbooci_asks_for_its_small_layers() {
    let without = |path: &str| path == "ids/big";
    let allowed = Allowed { more: &["lost+found"], without, ..Allowed::default() };
    assert_eq!(check("turbooci-ext4", "TurboOCI 0.1.0-turbo.ociv1 (ext4)", false, &allowed), 99_930 + 3_106);
    let without = |path: &str| path.starts_with("names/nnnnn");
    let allowed = Allowed { without, implied_mode: Some("0o777"), ..Allowed::default() };
    assert_eq!(
        check("turbooci-erofs", "TurboOCI 0.1.0-turbo.ociv1 (erofs)", false, &allowed),
        108_599 + 6_662
    );
}

#[test]
fn soci_asks_for_its_ztocs() {
    // Besides the ends of the layers, which may have had a TOC of their own.
    let bytes = check("soci-v2", "SOCI index v2, zTOC version 0.9", true, &Allowed::default());
    assert_eq!(bytes, 1_661 + 676_208 + 66 + 35_536 + 66 + (32 << 10) + 1_296);
    let bytes = check("soci-v1", "SOCI index v1, zTOC version 0.9", false, &Allowed::default());
    assert!(bytes < 1_261 + 1_136_320 + 35_536 + (32 << 10) + 1_296 + 1_000, "{bytes}");
    // What the manifest names needs nobody else's word.
    let (outcomes, _) = ask("soci-v2", &facts("soci-v2", false));
    assert!(matches!(&outcomes[..], [Ok(found)] if found.pinned && found.parts.len() == 2));
    assert_eq!(ask("soci-v1", &facts("soci-v1", false)).1, 0);
    // And what is read by its own format needs no index.
    let mut both = facts("estargz", true);
    both.annotations = facts("soci-v2", true).annotations;
    assert_eq!(readers(&both).len(), both.layers.len());
}

/// What the manifest does not pin is asked of nobody who does not trust it.
#[test]
fn block_devices_are_refused_where_only_what_is_pinned_is_trusted() {
    for image in ["overlaybd", "turbooci-ext4", "turbooci-erofs"] {
        let (outcomes, bytes) = ask(image, &facts(image, false));
        assert_eq!(bytes, 0);
        assert!(matches!(&outcomes[..], [Err(Refusal::Unusable(_))]), "{image}");
    }
}
