//! What `inspect`, `images`, `why` and `pull` tell of an image.

use super::*;

fn json(node: &Node, args: &[&str]) -> Value {
    serde_json::from_str(&node.says(&[args, &["--json"]].concat())).unwrap()
}

fn notes(told: &Value) -> Vec<Option<&str>> {
    told["layers"].as_array().unwrap().iter().map(|layer| layer["note"].as_str()).collect()
}

fn text<'a>(told: &'a Value, field: &str) -> &'a str {
    told[field].as_str().unwrap_or_else(|| panic!("{field}: {told}"))
}

/// Whose layers have one frame is told before anything of them is here, and not once all is.
#[test]
fn an_indexed_layer_of_one_zstd_frame() {
    let image = published("zstd");
    Node::new().says(&["index", "--push", &image.name]);
    let node = Node::new();
    image.proxy.reset();
    let told = inspect(&node, &image.name, &[]);
    let all = |told: &Value, wanted: Option<&str>| {
        notes(told).iter().all(|note| {
            note.is_some() == wanted.is_some() && note.is_none_or(|n| n.contains(wanted.unwrap()))
        })
    };
    assert!(all(&told, Some("fetched whole at its first read")), "{told}");
    assert!(
        told["lazy"] == true && text(&told, "why").contains("2 of 2 layers can be read from no place but"),
        "{told}"
    );
    let layers = image.layers();
    let asked = image.proxy.log();
    assert!(!asked.iter().any(|r| layers.iter().any(|layer| r.path.ends_with(layer))), "{asked:?}");
    node.says(&["pull", &image.name]);
    let told = inspect(&node, &image.name, &[]);
    assert!(all(&told, None) && !text(&told, "why").contains("first read"), "{told}");
    // Of many frames there is nothing to tell.
    let image = published("gzip");
    Node::new().says(&["index", "--push", &image.name]);
    let told = inspect(&Node::new(), &image.name, &[]);
    assert!(all(&told, None) && !text(&told, "why").contains("first read"), "{told}");
}

/// What was read to its end by an index, and found to be the image's, is as complete as after a pull.
#[test]
fn an_image_that_was_read_through_by_its_index() {
    let image = published("gzip");
    Node::new().says(&["index", "--push", &image.name]);
    let node = Node::new();
    let complete = || json(&node, &["images"])[0]["complete"] == true;
    let mount = node.mount(&image.name, &[]);
    assert!(!complete());
    assert_right(&mount, &Exceptions::full());
    process::wait_until("the check of all its layers", PATIENCE, || Ok(complete())).unwrap();
    mount.unmount();
    image.proxy.reset();
    let told = inspect(&node, &image.name, &[]);
    assert!(told["complete"] == true && told["lazy"] == false, "{told}");
    assert!(text(&told, "why").contains("nothing is left to fetch"), "{told}");
    let why = node.says(&["why", &image.name]);
    assert!(why.contains(&format!("a mount of {} now: all of it is here, verified", image.name)), "{why}");
    assert_right(&node.mount(&image.name, &[]), &Exceptions::full());
    let asked = image.proxy.log();
    assert!(asked.iter().all(|r| !r.path.contains("/blobs/")), "{asked:?}");
}

/// An image that is one file system is here as a whole, or not: no layer has a part of its own.
#[test]
fn an_image_that_is_one_file_system() {
    for (fixture, layers, vouched) in [
        ("nydus-v6", 3, "digests of its parts in metadata that the image's own digests cover: all of it"),
        ("overlaybd", 2, "the image's own digests: all of it"),
    ] {
        let image = published(fixture);
        let node = Node::new();
        let told = inspect(&node, &image.name, &[]);
        let of_layers = |told: &Value, verified: bool| {
            let all = told["layers"].as_array().unwrap();
            all.iter().all(|layer| layer.get("present").is_none() && layer["verified"] == verified)
        };
        assert!(told["present"].is_null() && told.get("present").is_some(), "{told}");
        assert!(of_layers(&told, false) && told["complete"] == false, "{told}");
        for fetched in [layers, 0] {
            let pulled = json(&node, &["pull", &image.name]);
            let counts = (&pulled["fetched_layers"], &pulled["layers"]);
            assert_eq!(counts, (&fetched.into(), &layers.into()), "{fixture}: {pulled}");
            assert_eq!(pulled["one_file_system"], true, "{fixture}: {pulled}");
            let told = inspect(&node, &image.name, &["--trust-index", "none"]);
            assert!(
                told["present"][0].as_u64() > Some(0) && told["present"][0] == told["present"][1],
                "{told}"
            );
            assert!(of_layers(&told, true) && told["complete"] == true, "{told}");
            assert!(
                text(&told, "vouched").starts_with(vouched) && notes(&told).iter().all(Option::is_none),
                "{told}"
            );
        }
    }
}

/// One that is shown by the layers that it was made of has theirs.
#[test]
fn an_image_that_is_shown_by_other_layers() {
    let layout = instead::of_other_layers();
    let image = Published::plain(layout.path());
    let node = Node::new();
    let told = inspect(&node, &image.name, &["--trust-index", "none"]);
    assert!(told["present"].is_null() && told["complete"] == false, "{told}");
    for fetched in [2, 0] {
        let pulled = json(&node, &["pull", &image.name]);
        assert_eq!((&pulled["fetched_layers"], &pulled["layers"]), (&fetched.into(), &2.into()), "{pulled}");
        let told = inspect(&node, &image.name, &[]);
        assert!(told["present"][0].as_u64() > Some(0) && told["present"][0] == told["present"][1], "{told}");
        assert!(told["layers"].as_array().unwrap().iter().all(|l| l.get("present").is_none()), "{told}");
        assert!(told["complete"] == true, "{told}");
    }
}

/// Files are right where damage is in nothing that anybody reads; that the blobs are what the image says is not claimed.
#[test]
fn a_nydus_blob_that_is_damaged_outside_its_chunks() {
    let layout = Layout::of("nydus-v6");
    let digest = layout.manifest()["layers"][0]["digest"].clone();
    let blob = layout.blob(&digest);
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let name = format!("oci:{}", layout.path().display());
    let node = Node::new();
    node.says(&["pull", &name]);
    assert_right(&node.mount(&name, &[]), &Exceptions::without_fifo());
    let told = inspect(&node, &name, &[]);
    assert!(text(&told, "vouched").starts_with("digests of its parts"), "{told}");
    // With a layer gone the pull names that one, and no other.
    fs::remove_file(&blob).unwrap();
    let said = Node::new().fails(&["pull", &name]);
    let said = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    let layers = layout.manifest()["layers"].clone();
    assert!(
        said.contains("cannot fetch all of") && said.contains(&digest.as_str().unwrap()[7..19]),
        "{said}"
    );
    assert!(
        !said.contains("decoded") && !said.contains(&layers[2]["digest"].as_str().unwrap()[7..19]),
        "{said}"
    );
}

/// What nothing but whole layers is trusted for is told of each kind of image.
#[test]
fn where_no_metadata_is_trusted() {
    let node = Node::new();
    let told = |fixture: &str| inspect(&node, &published(fixture).name, &["--trust-index", "none"]);
    let lazy = told("estargz");
    assert!(text(&lazy, "why").starts_with("--trust-index=none trusts nothing but whole layers"), "{lazy}");
    let lost = told("nydus-v6");
    assert!(lost["lazy"] == false && text(&lost, "why").contains("it can't be mounted"), "{lost}");
    assert!(notes(&lost).iter().all(|note| note.is_some_and(|n| n.contains("trusts no metadata"))), "{lost}");
    assert_eq!(text(&lost, "vouched"), "nothing that can be read");
    let instead = told("nydus-zran");
    assert!(text(&instead, "why").contains("its original layers are fetched whole"), "{instead}");
}

/// The tables that eStargz can have in an image of their own are no image.
#[test]
fn what_stands_beside_an_image() {
    let image = published("estargz-extern-esgztoc");
    let said = Node::new().fails(&["pull", &image.name]);
    assert!(said.contains("this is no container image") && said.contains("the image itself"), "{said}");
}

/// Neither do later mounts doubt what an earlier one has completed.
#[test]
fn an_image_that_was_read_through_by_its_own_metadata() {
    for (fixture, exceptions) in [("estargz", Exceptions::full()), ("nydus-v6", Exceptions::without_fifo())] {
        let image = published(fixture);
        let node = Node::new();
        let is_complete = || json(&node, &["images"])[0]["complete"] == true;
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount, &exceptions);
        process::wait_until("the check of all of it", PATIENCE, || Ok(is_complete())).unwrap();
        mount.unmount();
        image.proxy.reset();
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount, &exceptions);
        mount.unmount();
        assert!(is_complete() && !node.logs().contains("ERROR"), "{fixture}: {}", node.logs());
        let asked = image.proxy.log();
        assert!(asked.iter().all(|r| !r.path.contains("/blobs/")), "{fixture}: {asked:?}");
    }
}
