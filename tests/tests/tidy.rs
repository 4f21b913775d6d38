//! The rules of the house that a machine can check: imports follow the floors, nothing unfinished is left,
//! every module says what it is about. The longest files and functions are listed for whoever reads along.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// All Rust files of the workspace's own crates.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut dirs: Vec<PathBuf> =
        ["proto", "broker", "client", "tests", "benches"].iter().map(|name| root().join(name)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a readable directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "the workspace has sources; found {}", found.len());
    found
}

/// What a line of broker code may not name, by where it lies.
fn forbidden(file: &str) -> &'static [&'static str] {
    if file.ends_with("tests.rs") || file.ends_with("vectors.rs") || file.ends_with("fixture.rs") {
        &[]
    } else if file.starts_with("broker/src/store/") {
        &[
            "crate::publish",
            "crate::deliver",
            "crate::transaction",
            "crate::timer",
            "crate::groups",
            "crate::topics",
            "crate::routes",
            "crate::remoting",
            "crate::cli",
            "crate::broker::",
        ]
    } else if file.starts_with("broker/src/cli/") {
        &["crate::remoting", "crate::publish", "crate::deliver", "crate::transaction", "crate::groups"]
    } else if file.starts_with("broker/src/remoting/") {
        &["crate::cli", "crate::broker::"]
    } else if file.starts_with("broker/src/") && file != "broker/src/broker.rs" && file != "broker/src/lib.rs"
    {
        &["crate::remoting", "crate::cli", "crate::broker::"]
    } else if file.starts_with("proto/src/") {
        &["tokio::", "std::fs", "std::net::Tcp", "std::time::SystemTime", "std::time::Instant"]
    } else {
        &[]
    }
}

#[test]
fn imports_follow_the_floors() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("//") {
                continue;
            }
            for name in forbidden(&file) {
                if code.contains(name) {
                    wrong.push(format!("{file}:{}: {name} is on a floor above", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_unfinished_is_left() {
    let marks =
        [concat!("to", "do!("), concat!("unimpl", "emented!("), concat!("db", "g!("), concat!("FIX", "ME")];
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                wrong.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
            if line.trim() == concat!("#[ign", "ore]") {
                wrong.push(format!("{file}:{}: an ignored test needs its reason", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is_about() {
    let missing: Vec<_> = sources()
        .into_iter()
        .filter(|(file, _)| !file.ends_with("tests.rs"))
        .filter(|(_, text)| !text.lines().any(|line| line.starts_with("//!")))
        .map(|(file, _)| file)
        .collect();
    assert!(missing.is_empty(), "without a //! overview: {}", missing.join(", "));
}

#[test]
fn unsafe_code_is_where_it_is_meant_to_be() {
    let word = concat!("uns", "afe ");
    let with: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| {
            text.lines()
                .any(|line| !line.trim_start().starts_with("//") && line.contains(&format!("{word}{{")))
        })
        .map(|(file, _)| file)
        .collect();
    assert_eq!(with, ["broker/src/store/disk.rs", "tests/faults/src/hooks.rs", "tests/faults/src/sys.rs"]);
}

#[test]
fn the_longest_files_and_functions_are_listed() {
    let sources = sources();
    let mut files: Vec<_> = sources.iter().map(|(file, text)| (text.lines().count(), file)).collect();
    files.sort_unstable_by(|left, right| right.cmp(left));
    println!("longest files:");
    for (lines, file) in files.iter().take(10) {
        println!("  {lines:5} {file}");
    }
    let mut functions = Vec::new();
    for (file, text) in &sources {
        let mut open: Option<(usize, usize, String)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let code = line.trim_start();
            match &open {
                Some((start, depth, name)) if indent == *depth && code.starts_with('}') => {
                    functions.push((number - start, format!("{file}:{} {name}", start + 1)));
                    open = None;
                }
                None if code.contains("fn ") && !code.starts_with("//") && !code.ends_with(';') => {
                    let name = code.split("fn ").nth(1).unwrap_or_default();
                    open = Some((number, indent, name.split('(').next().unwrap_or_default().to_owned()));
                }
                _ => {}
            }
        }
    }
    functions.sort_unstable_by(|left, right| right.cmp(left));
    println!("longest functions:");
    for (lines, place) in functions.iter().take(10) {
        println!("  {lines:5} {place}");
    }
    assert!(functions.len() > 500, "functions are found; {}", functions.len());
}
