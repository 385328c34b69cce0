//! How far a published index is believed (`docs/SEMANTICS.md`, "Trust"), and what a lying one comes to.

mod node;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use hoist_testkit::layout::Compression;
use hoist_testkit::push::{push_blob, push_manifest};
use hoist_testkit::{Fault, FaultKind, When, digest, http, process, push_layout};
use node::case::{Case, PATIENCE};
use node::tree::{FILES, Source, noise, wait_mended};
use node::{Node, Published, REPO, count};
use serde_json::{Value, json};

#[test]
fn without_trust_everything_is_fetched_and_no_index_looked_for() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for trust in ["local", "none"] {
        image.proxy.reset();
        let node = Node::new();
        let mount = node.mount(&image.name, &["--trust-index", trust]);
        source.assert_shown(mount.root());
        let stats = mount.unmount();
        assert_eq!(count(&stats, "demand_stalls"), 0, "{trust}: {stats}");
        assert!(count(&stats, "wire_bytes") > 5_000_000, "{trust}: {stats}");
        let parts = [image.parts("tree"), image.parts("table"), image.parts("windows")].concat();
        for request in image.proxy.log() {
            let of_index = request.path.contains("sha256-") || request.path.contains("referrers");
            assert!(!of_index && !parts.iter().any(|p| request.path.contains(p.as_str())), "{request:?}");
        }
    }
}

/// An image, and beside it the index that was really made of another one.
struct Lied {
    image: Published,
    told: Source,
    layer: String,
    others_layer: String,
}

/// The file that the other image has otherwise, of the same length.
const CHANGED: &str = "lib/b.so";

impl Lied {
    /// `parts`: the media types (`tree`, `table`, `windows`) that are taken from the other image's index.
    fn new(parts: &[&str], compression: Compression, change: impl Fn(&Source)) -> Lied {
        let told = Source::new();
        let layout = told.layout(compression);
        let image = Published::indexed(&layout.directory);
        let other = Source::new();
        change(&other);
        let others = other.layout(compression);
        push_layout(&image.registry.host(), "other", "v1", &others.directory).unwrap();
        let name = format!("{}/other:v1", image.registry.host());
        Node::new().says(&["index", "--push", &name]);
        let host = image.registry.host();
        let accept = [("accept", "application/vnd.oci.image.manifest.v1+json")];
        let tag = format!("/v2/other/manifests/{}.hoist", others.manifest.replace(':', "-"));
        let lie: Value = serde_json::from_slice(&http::get(&host, &tag, &accept).unwrap().body).unwrap();
        let mut index = image.index();
        let kind = |part: &Value| part["mediaType"].as_str().unwrap().to_owned();
        let chosen = |part: &&Value| parts.iter().any(|p| kind(part).contains(p));
        for foreign in lie["layers"].as_array().unwrap().iter().filter(chosen) {
            let digest = foreign["digest"].as_str().unwrap();
            let path = format!("/v2/other/blobs/{digest}");
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), http::get(&host, &path, &[]).unwrap().body).unwrap();
            push_blob(&host, REPO, digest, file.path()).unwrap();
            let mine = index["layers"].as_array_mut().unwrap();
            let mine = mine.iter_mut().find(|part| kind(part) == kind(foreign)).unwrap();
            (mine["digest"], mine["size"]) = (json!(digest), foreign["size"].clone());
        }
        let bytes = serde_json::to_vec(&index).unwrap();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        push_manifest(&host, REPO, &digest::of_bytes(&bytes), media_type, &bytes).unwrap();
        push_manifest(&host, REPO, &image.index_tag(), media_type, &bytes).unwrap();
        // Nor is the true one to be found among the referrers.
        let entry = json!({"mediaType": media_type, "digest": digest::of_bytes(&bytes), "size": bytes.len(),
            "artifactType": index["artifactType"]});
        let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string();
        push_manifest(&host, REPO, &image.digest.replace(':', "-"), INDEX, list.as_bytes()).unwrap();
        let (layer, others_layer) = (layout.layers[0].clone(), others.layers[0].clone());
        Lied { image, told, layer, others_layer }
    }

    /// The store knows of the lie, so that a mount is right although the index is still published.
    fn is_never_used_again(&self, node: &Node) {
        self.image.proxy.reset();
        let mount = node.mount(&self.image.name, &[]);
        self.told.assert_shown(mount.root());
        assert_eq!(count(&mount.unmount(), "demand_stalls"), 0);
    }
}

fn change_content(other: &Source) {
    let (seed, length) = (99, other.read(CHANGED).len());
    other.write(CHANGED, &noise(seed, length));
}

#[test]
fn a_table_of_other_content_makes_no_wrong_byte_readable() {
    let lied = Lied::new(&["tree", "table"], Compression::None, change_content);
    let node = Node::new();
    let mount = node.mount(&lied.image.name, &[]);
    assert_eq!(mount.read(CHANGED).unwrap_err().raw_os_error(), Some(libc::EIO));
    let right = lied.told.assert_right_or_failing(mount.root());
    assert!(right < FILES.len());
    node.says(&["pull", &lied.image.name]);
    node.wait_distrusted();
    drop(mount);
    lied.is_never_used_again(&node);
}

#[test]
fn a_pull_finds_that_a_table_lied() {
    let lied = Lied::new(&["tree", "table"], Compression::None, change_content);
    let node = Node::new();
    let mount = node.mount(&lied.image.name, &[]);
    assert_eq!(mount.read("etc/motd").unwrap(), lied.told.read("etc/motd"));
    drop(mount);
    node.says(&["pull", &lied.image.name]);
    node.wait_distrusted();
    lied.is_never_used_again(&node);
}

#[test]
fn a_gzip_table_of_other_content_makes_no_wrong_byte_readable() {
    let lied = Lied::new(&["tree", "table", "windows"], Compression::Gzip(1), change_content);
    let node = Node::new();
    // The blobs' lengths differ or not as gzip will have it: refused at once, or when read.
    match node.try_mount(&lied.image.name, &[]) {
        Ok(mount) => {
            let right = lied.told.assert_right_or_failing(mount.root());
            assert!(right < FILES.len() || fs::read_dir(node.store("distrusted")).unwrap().count() == 0);
        }
        Err(said) => assert!(said.contains("index"), "{said}"),
    }
    node.says(&["pull", &lied.image.name]);
    lied.is_never_used_again(&node);
}

/// Who holds the registry may serve another layer and its index alike: that shows when the layer is complete.
#[test]
fn another_layer_with_an_index_that_fits_it_is_found_out_when_complete() {
    let lied = Lied::new(&["tree", "table"], Compression::None, change_content);
    let stored = |layer| lied.image.registry.blob_path(layer);
    let true_blob = fs::read(stored(&lied.layer)).unwrap();
    fs::copy(stored(&lied.others_layer), stored(&lied.layer)).unwrap();
    let node = Node::new();
    let mount = node.mount(&lied.image.name, &[]);
    hoist_testkit::reading::sequential(mount.root()).unwrap();
    node.wait_distrusted();
    drop(mount);
    let Err(said) = node.try_mount(&lied.image.name, &[]) else { panic!("mounted another's layer") };
    assert!(said.contains(&lied.layer), "{said}");
    fs::write(stored(&lied.layer), true_blob).unwrap();
    lied.is_never_used_again(&node);
}

/// Two answers that do not fit the index: then the layer as a whole tells who is wrong, without anybody asking for it.
#[test]
fn bytes_that_never_fit_the_index_have_it_found_out() {
    let lied = Lied::new(&["tree", "table"], Compression::None, change_content);
    let node = Node::new();
    let mount = node.mount(&lied.image.name, &[]);
    assert_eq!(mount.read(CHANGED).unwrap_err().raw_os_error(), Some(libc::EIO));
    node.wait_distrusted();
    // Of what is in no cache yet nothing is shown any more.
    assert_eq!(mount.read("lib/d.so").unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(mount);
    lied.is_never_used_again(&node);
}

/// Nor is a true index blamed for a registry that is broken.
#[test]
fn bytes_that_never_fit_a_true_index_accuse_the_registry() {
    let case = Case::of(Source::new(), Compression::None);
    case.inject(When::Always, FaultKind::FlipBit(70_000));
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_right_or_failing(mount.root());
    process::wait_until("the outcome", PATIENCE, || {
        Ok(node.logs().contains("nothing was found out about the index"))
    })
    .unwrap_or_else(|e| panic!("{e}{}", node.logs()));
    case.image.proxy.clear_faults();
    wait_mended(mount.root());
    case.source.assert_shown(mount.root());
    assert_eq!(fs::read_dir(node.store("distrusted")).unwrap().count(), 0);
}

/// Waits for the verdict on the tree of the case's image, and gives the file that keeps it.
fn wait_judged(node: &Node, case: &Case) -> PathBuf {
    let judged = || -> Option<PathBuf> {
        let mut files = fs::read_dir(node.image(&case.image.digest)).ok()?.map(|entry| entry.unwrap().path());
        files.find(|path| path.extension().is_some_and(|e| e == "judged"))
    };
    process::wait_until("the verdict on the tree", PATIENCE, || Ok(judged().is_some())).unwrap();
    judged().unwrap()
}

/// A tree is judged although nothing has to be fetched: a process that was killed before its verdict had brought every
/// layer.
#[test]
fn a_tree_over_layers_that_were_all_here_is_judged() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_shown(mount.root());
    let verdict = wait_judged(&node, &case);
    mount.unmount();
    fs::remove_file(&verdict).unwrap();
    let mount = node.mount(&case.image.name, &[]);
    assert_eq!(wait_judged(&node, &case), verdict);
    assert_eq!(count(&mount.unmount(), "demand_stalls"), 0);
}

/// Parts that are what the index names, but no tree and no table: it counts as none, now and ever.
#[test]
fn an_index_whose_parts_are_nonsense_is_never_used_again() {
    for kind in ["tree", "table"] {
        let case = Case::new();
        let host = case.image.registry.host();
        let nonsense = noise(5, 3000);
        let digest = digest::of_bytes(&nonsense);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &nonsense).unwrap();
        push_blob(&host, REPO, &digest, file.path()).unwrap();
        let mut index = case.image.index();
        let parts = index["layers"].as_array_mut().unwrap();
        let part = parts.iter_mut().find(|p| p["mediaType"].as_str().unwrap().contains(kind)).unwrap();
        (part["digest"], part["size"]) = (json!(digest), json!(nonsense.len()));
        let bytes = serde_json::to_vec(&index).unwrap();
        replace_tagged(&case.image, &bytes);
        let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string();
        push_manifest(&host, REPO, &case.image.digest.replace(':', "-"), INDEX, list.as_bytes()).unwrap();
        let node = Node::new();
        {
            let mount = node.mount(&case.image.name, &[]);
            case.source.assert_right_or_failing(mount.root());
        }
        assert_eq!(fs::read_dir(node.store("distrusted")).unwrap().count(), 1, "{kind}");
        case.image.proxy.reset();
        let mount = node.mount(&case.image.name, &[]);
        case.source.assert_shown(mount.root());
        assert_eq!(count(&mount.unmount(), "demand_stalls"), 0, "{kind}");
        assert!(case.image.proxy.log().iter().all(|request| !request.path.contains(&digest)), "{kind}");
    }
}

/// A layer that was taken out of the store after the tree was judged is checked when it is filled anew.
#[test]
fn a_layer_that_is_filled_anew_is_checked_anew() {
    let case = Case::new();
    let node = Node::new();
    for _ in 0..2 {
        let mount = node.mount(&case.image.name, &[]);
        case.source.assert_shown(mount.root());
        node.wait_verified();
        wait_judged(&node, &case);
        mount.unmount();
        node.layers().iter().for_each(|layer| fs::remove_dir_all(layer).unwrap());
    }
}

fn change_mode(other: &Source) {
    let path = other.root().join("lib/a.so");
    fs::set_permissions(path, fs::Permissions::from_mode(0o4755)).unwrap();
}

#[test]
fn a_pull_finds_that_a_tree_lied() {
    let lied = Lied::new(&["tree"], Compression::None, change_mode);
    let node = Node::new();
    let mount = node.mount(&lied.image.name, &[]);
    assert!(hoist_testkit::walk(mount.root()).unwrap().values().any(|e| e.mode == 0o4755), "no lie was told");
    drop(mount);
    node.says(&["pull", &lied.image.name]);
    node.wait_distrusted();
    lied.is_never_used_again(&node);
}

#[test]
fn reading_everything_finds_that_a_tree_lied() {
    let lied = Lied::new(&["tree"], Compression::None, change_mode);
    let node = Node::new();
    let mount = node.mount(&lied.image.name, &[]);
    lied.told.assert_right_or_failing(mount.root());
    node.wait_distrusted();
    drop(mount);
    lied.is_never_used_again(&node);
}

/// Flipped bytes in the parts of an index: once, a second try mends it; always, nothing wrong is shown.
#[test]
fn a_damaged_index_shows_no_wrong_byte() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for kind in ["tree", "table", "windows"] {
        let parts = image.parts(kind);
        assert!(!parts.is_empty(), "{kind}");
        for (when, offset) in [(When::First(1), 40), (When::Always, 0), (When::Always, 40)] {
            for part in &parts {
                image.proxy.inject(Fault::new(format!("blobs/{part}"), when, FaultKind::FlipBit(offset)));
            }
            let node = Node::new();
            match node.try_mount(&image.name, &[]) {
                Ok(mount) if when == When::Always => {
                    source.assert_right_or_failing(mount.root());
                }
                Ok(mount) => source.assert_shown(mount.root()),
                Err(said) => {
                    assert!(said.contains("digest") || said.contains("sha256"), "{kind}: {said}");
                    assert!(when == When::Always, "{kind} was damaged once only: {said}");
                }
            }
            image.proxy.clear_faults();
            // What was damaged on the way leaves nothing behind.
            let mount = node.mount(&image.name, &[]);
            source.assert_shown(mount.root());
        }
    }
}

/// A published index whose manifest is damaged or of another image is as good as none.
#[test]
fn an_index_of_another_image_is_not_used() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let mut of_another = image.index();
    of_another["subject"]["digest"] = json!(digest::of_bytes(b"another"));
    let mut of_another_kind = image.index();
    of_another_kind["artifactType"] = json!("application/x-another");
    let mut without_tree = image.index();
    without_tree["layers"].as_array_mut().unwrap().remove(0);
    for index in [of_another, of_another_kind, without_tree] {
        let bytes = serde_json::to_vec(&index).unwrap();
        replace_tagged(&image, &bytes);
        let node = Node::new();
        let mount = node.mount(&image.name, &[]);
        source.assert_shown(mount.root());
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Puts `bytes` under the tag where an index is looked for first.
fn replace_tagged(image: &Published, bytes: &[u8]) {
    push_manifest(&image.registry.host(), REPO, &image.index_tag(), MANIFEST, bytes).unwrap();
}

/// Whether a mount takes what it shows from an index, and shows the image.
fn is_lazy(node: &Node, image: &Published, source: &Source) -> bool {
    let mount = node.mount(&image.name, &[]);
    source.assert_shown(mount.root());
    count(&mount.unmount(), "demand_stalls") > 0
}

/// Whoever spoils the tag hides nothing: the index stands among the referrers too.
#[test]
fn a_bad_index_under_the_tag_hides_no_good_one() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let mut of_another = image.index();
    of_another["subject"]["digest"] = json!(digest::of_bytes(b"another"));
    let mut without_tree = image.index();
    without_tree["layers"].as_array_mut().unwrap().remove(0);
    let good = serde_json::to_vec(&image.index()).unwrap();
    for bad in [of_another, without_tree, json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": 1})] {
        let bytes = serde_json::to_vec(&bad).unwrap();
        if push_manifest(&image.registry.host(), REPO, &image.index_tag(), MANIFEST, &bytes).is_ok() {
            assert!(is_lazy(&Node::new(), &image, &source), "{bad}");
        }
    }
    // What no registry would take, but a broken one may send.
    for kind in [FaultKind::FlipBit(3), FaultKind::Status(400, vec![])] {
        image.proxy.inject(Fault::new(format!("manifests/{}", image.index_tag()), When::Always, kind));
        assert!(is_lazy(&Node::new(), &image, &source));
        image.proxy.clear_faults();
    }
    replace_tagged(&image, &good);
    // A distrusted one under the tag does not hide another either: the same parts, told anew, are another artifact.
    let node = Node::new();
    let mut anew = image.index();
    anew["annotations"]["org.opencontainers.image.created"] = json!("2001-01-01T00:00:00Z");
    let anew = serde_json::to_vec(&anew).unwrap();
    replace_tagged(&image, &anew);
    node.make_store();
    fs::write(node.store("distrusted").join(&digest::of_bytes(&anew)[7..]), "it lied in a test").unwrap();
    assert!(is_lazy(&node, &image, &source));
}

/// The story of a lie that is corrected: found out, never used again, and the new index used at once, by tag and by
/// digest, although the old one stands in the store.
#[test]
fn a_corrected_index_is_used_where_the_lying_one_was_found_out() {
    let lied = Lied::new(&["tree", "table"], Compression::None, change_content);
    let image = &lied.image;
    let node = Node::new();
    drop(node.mount(&image.name, &[]));
    let kept = node.store("images").join(&image.digest[7..]).join("index.json");
    let lie = fs::read(&kept).unwrap();
    fs::write(node.store("distrusted").join(&digest::of_bytes(&lie)[7..]), "it lied in a test").unwrap();
    Node::new().says(&["index", "--push", &image.name]);
    assert!(is_lazy(&node, image, &lied.told));
    assert_ne!(fs::read(&kept).unwrap(), lie);

    // By digest, whose manifest the store knows: without an index that can be used, it looks again.
    let now = fs::read(&kept).unwrap();
    fs::write(node.store("distrusted").join(&digest::of_bytes(&now)[7..]), "it lied in a test").unwrap();
    let mut anew = image.index();
    anew["layers"] = serde_json::from_slice::<Value>(&now).unwrap()["layers"].clone();
    anew["annotations"]["org.opencontainers.image.created"] = json!("2001-01-01T00:00:00Z");
    replace_tagged(image, &serde_json::to_vec(&anew).unwrap());
    let (repo, _) = image.name.rsplit_once(':').unwrap();
    let mount = node.mount(&format!("{repo}@{}", image.digest), &[]);
    lied.told.assert_shown(mount.root());
    assert!(count(&mount.unmount(), "demand_stalls") > 0);
}

/// Of several the newest that can be used; published again unchanged, it is the same artifact.
#[test]
fn the_newest_usable_referrer_is_taken() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let first = serde_json::to_vec(&image.index()).unwrap();
    Node::new().says(&["index", "--push", &image.name]);
    assert_eq!(serde_json::to_vec(&image.index()).unwrap(), first);
    let host = image.registry.host();
    let fallback = image.digest.replace(':', "-");
    let path = format!("/v2/{REPO}/manifests/{fallback}");
    let mut list: Value =
        serde_json::from_slice(&http::get(&host, &path, &[("accept", INDEX)]).unwrap().body).unwrap();
    assert_eq!(list["manifests"].as_array().unwrap().len(), 1);

    let created = "org.opencontainers.image.created";
    let kind = list["manifests"][0]["artifactType"].clone();
    let mut digests = Vec::new();
    for (at, broken) in [
        ("2090-01-01T00:00:00Z", false),
        ("2095-01-01T00:00:00+02:00", true),
        ("2080-01-01T00:00:00Z", false),
        ("2099-01-01T00:00:00Z", false),
    ] {
        let mut index = image.index();
        index["annotations"][created] = json!(at);
        if broken {
            index["subject"]["digest"] = json!(digest::of_bytes(b"another"));
        }
        let bytes = serde_json::to_vec(&index).unwrap();
        push_manifest(&host, REPO, &digest::of_bytes(&bytes), MANIFEST, &bytes).unwrap();
        let entry = json!({"mediaType": MANIFEST, "digest": digest::of_bytes(&bytes), "size": bytes.len(),
            "artifactType": kind, "annotations": {created: at}});
        list["manifests"].as_array_mut().unwrap().push(entry);
        digests.push(digest::of_bytes(&bytes));
    }
    let list = serde_json::to_vec(&list).unwrap();
    push_manifest(&host, REPO, &fallback, INDEX, &list).unwrap();
    // The newest was deleted and is still listed.
    let gone = format!("/v2/{REPO}/manifests/{}", digests[3]);
    assert_eq!(http::request(&host, "DELETE", &gone, &[], None).unwrap().status, 202);
    let no_tag = FaultKind::Status(404, vec![]);
    image.proxy.inject(Fault::new(format!("manifests/{}", image.index_tag()), When::Always, no_tag));
    let node = Node::new();
    assert!(is_lazy(&node, &image, &source));
    let kept = node.store("images").join(&image.digest[7..]).join("index.json");
    assert_eq!(digest::of_bytes(&fs::read(&kept).unwrap()), digests[0]);
}
