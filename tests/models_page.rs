//! Pages with tables that tests measure, `docs/models.md` above all: the tests say when such a page is no longer true.

use std::{fs, sync::Mutex};

use crate::root;

/// Sections are written one at a time.
static WRITING: Mutex<()> = Mutex::new(());

/// [`check_in`] of `docs/models.md`.
///
/// # Panics
/// When the page has no such section, or another table in it.
pub fn check(name: &str, table: &str) {
    check_in("docs/models.md", name, table);
}

/// Compares the lines between the marks of section `name` of `file` with `table`; with `QMESH_MODELS_PAGE=write`, replaces
/// them.
///
/// # Panics
/// When the page has no such section, or another table in it.
pub fn check_in(file: &str, name: &str, table: &str) {
    let path = root().join(file);
    let _writing = WRITING.lock().expect("a section that was not written is a failed test already");
    let page = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let from = page.find(&start).unwrap_or_else(|| panic!("{file} has no section {name}")) + start.len();
    let to = from + page[from..].find(&end).unwrap_or_else(|| panic!("section {name} of {file} has no end"));
    if std::env::var_os("QMESH_MODELS_PAGE").is_some_and(|how| how == "write") {
        let page = [&page[..from], table, &page[to..]].concat();
        fs::write(&path, page).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    } else {
        assert_eq!(&page[from..to], table, "{file} is old: QMESH_MODELS_PAGE=write renews it");
    }
}
