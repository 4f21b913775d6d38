//! The tables in `docs/compatibility.md`: between two comments each, written by hand never.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Set to write the tables instead of comparing them.
const WRITE: &str = "GANTRY_WRITE_TABLES";

/// One writer at a time.
static FILE: Mutex<()> = Mutex::new(());

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md")
}

/// Splits the page around the table called `name`.
fn split(page: &str, name: &str) -> (String, String, String) {
    let (begin, end) = (format!("<!-- {name} begin -->\n"), format!("<!-- {name} end -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{begin:?} is missing"));
    let (table, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{end:?} is missing"));
    (format!("{before}{begin}"), table.to_owned(), format!("{end}{after}"))
}

/// Rows of a table as they stand on the page: the cells of each.
pub fn rows(name: &str) -> Vec<Vec<String>> {
    let page = fs::read_to_string(page()).unwrap();
    let (_, table, _) = split(&page, name);
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    table.lines().filter(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

/// Compares the first `compared` cells of each row with the page, or writes all of them.
pub fn check(name: &str, head: &[&str], rows_now: &[Vec<String>], compared: usize) {
    if std::env::var_os(WRITE).is_some() {
        let _guard = FILE.lock().unwrap();
        let text = fs::read_to_string(page()).unwrap();
        let (before, _, after) = split(&text, name);
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
        let rule = format!("|{}\n", " --- |".repeat(head.len()));
        let table: String = rows_now.iter().map(|row| line(row)).collect();
        fs::write(page(), format!("{before}{}{rule}{table}{after}", line(&head))).unwrap();
        return;
    }
    let cut = |row: &Vec<String>| row.iter().take(compared).cloned().collect::<Vec<_>>();
    let (found, expected): (Vec<_>, Vec<_>) =
        (rows_now.iter().map(cut).collect(), rows(name).iter().map(cut).collect());
    let wrong: Vec<_> = found.iter().filter(|row| !expected.contains(row)).collect();
    let gone: Vec<_> = expected.iter().filter(|row| !found.contains(row)).collect();
    assert!(
        wrong.is_empty() && gone.is_empty(),
        "docs/compatibility.md, table of {name}: seen now but not there: {wrong:#?}, there but not seen: {gone:#?}; \
         write it with {WRITE}=1 cargo test -p gantry-tests --test mqadmin -- --test-threads=1"
    );
}
