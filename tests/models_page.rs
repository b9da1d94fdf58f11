//! `docs/models.md`: its tables are what the golden tests measure, and the tests say when it is no longer true.

use std::{fs, sync::Mutex};

use crate::root;

/// Sections are written one at a time.
static WRITING: Mutex<()> = Mutex::new(());

/// Compares the lines between the marks of section `name` with `table`; with `QMESH_MODELS_PAGE=write`, replaces them.
///
/// # Panics
/// When the page has no such section, or another table in it.
pub fn check(name: &str, table: &str) {
    let path = root().join("docs/models.md");
    let _writing = WRITING.lock().expect("a section that was not written is a failed test already");
    let page = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let from = page.find(&start).unwrap_or_else(|| panic!("docs/models.md has no section {name}")) + start.len();
    let to = from + page[from..].find(&end).unwrap_or_else(|| panic!("section {name} of docs/models.md has no end"));
    if std::env::var_os("QMESH_MODELS_PAGE").is_some_and(|how| how == "write") {
        let page = [&page[..from], table, &page[to..]].concat();
        fs::write(&path, page).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    } else {
        assert_eq!(&page[from..to], table, "docs/models.md is old: QMESH_MODELS_PAGE=write renews it");
    }
}
