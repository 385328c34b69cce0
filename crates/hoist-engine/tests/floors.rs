//! Which room imports from which: those of the floors below, as `docs/ARCHITECTURE.md` lists them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the list names as the only steps up: from, to, how often.
const STEPS_UP: [(&str, &str, usize); 1] = [("engine", "mount", 2)];

/// The rooms of a floor stand before its first colon.
fn floors() -> BTreeMap<String, usize> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, list) = text.split_once("### Floors of `hoist-engine`").unwrap();
    let mut floors = BTreeMap::new();
    for line in list.lines().take_while(|line| !line.starts_with('#')) {
        let Some((number, rooms)) = line.split_once(". ") else { continue };
        let Ok(number) = number.parse() else { continue };
        let rooms = rooms.split(':').next().unwrap_or_default();
        floors.extend(rooms.split('`').skip(1).step_by(2).map(|room| (room.to_owned(), number)));
    }
    floors
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => sources(&path, into),
            false => into.push(path),
        }
    }
}

/// The rooms that a file names after `crate::`, its own tests and its comments aside.
fn imported(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut rooms = Vec::new();
    for (at, _) in lines.match_indices("crate::") {
        let after = &lines[at + "crate::".len()..];
        // Names that a list in braces begins with are found by no room: they are not used here.
        assert!(!after.starts_with('{'), "import rooms one by one: {}", &after[..40.min(after.len())]);
        let is_of_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
        rooms.push(after.chars().take_while(is_of_name).collect());
    }
    rooms
}

#[test]
fn rooms_import_from_the_floors_below() {
    let floors = floors();
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&top, &mut files);
    assert!(files.len() > 80, "{} files", files.len());
    let (mut wrong, mut up) = (Vec::new(), BTreeMap::<_, usize>::new());
    for file in files {
        let place = file.strip_prefix(&top).unwrap();
        let room = place.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if room == "lib" {
            continue;
        }
        let Some(&floor) = floors.get(room) else {
            wrong.push(format!("{room} is on no floor"));
            continue;
        };
        for other in imported(&std::fs::read_to_string(&file).unwrap()) {
            // What is not a room is what lib.rs passes on.
            let Some(&below) = floors.get(&other).filter(|_| other != room) else { continue };
            if below < floor || floor == 1 && below == 1 {
                continue;
            }
            match STEPS_UP.iter().find(|(from, to, _)| *from == room && *to == other) {
                Some(step) => *up.entry(*step).or_default() += 1,
                None => wrong.push(format!("{}: {room} imports {other}", place.display())),
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    // What the list excuses is there, and no more of it.
    for step in STEPS_UP {
        assert_eq!(up.get(&step), Some(&step.2), "{step:?}");
    }
}
