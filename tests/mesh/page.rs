//! The page at `/`, clicked through in headless Chromium. `npm ci` in `tests/page` fetches what drives it; the screenshots are left
//! in the build's folder, `page/*.png`.

use std::{path::PathBuf, process::Command};

use qmesh_tests::{default_model, process, root};

use super::{STARTING, Serving};

#[test]
fn the_page_shows_the_pipeline_and_chats() {
    let Some(browser) = Browser::find() else { return };
    // Room for an answer that goes on for as long as a busy machine's browser takes to click.
    let serving = Serving::start_for(&default_model(), 4096, &["--min-workers", "2"]);
    let _first = serving.join("left", &[]);
    let second = serving.join("right", &[]);
    serving.wait_ready(2);
    browser.play("load", &serving.url, None);
    second.signal("KILL");
    serving.wait_ready(1);
    browser.play("lost", &serving.url, None);
    browser.play("again", &serving.url, None);
}

#[test]
fn the_page_asks_for_the_key_once() {
    let Some(browser) = Browser::find() else { return };
    let serving = Serving::start(&["--api-key", "open sesame"]);
    let mut worker = serving.join("alone", &[]);
    worker.wait_for(STARTING, "the welcome", |line| line.contains("joined ").then_some(()));
    browser.play("key", &serving.url, Some("open sesame"));
}

#[test]
fn the_page_asks_its_owner_who_may_join() {
    let Some(browser) = Browser::find() else { return };
    let mut serving = Serving::start(&["--open", "--listen", "0.0.0.0:0", "--min-workers", "1"]);
    let link = serving
        .coordinator
        .wait_for(STARTING, "the owner's link", |line| line.contains("/#owner=").then(|| line.trim().to_owned()));
    let homes = [tempfile::TempDir::new().unwrap(), tempfile::TempDir::new().unwrap()];
    let mut workers =
        ["attic", "cellar"].map(|name| super::open::ask(&serving, name, homes[usize::from(name == "attic")].path()));
    let codes = workers.each_mut().map(super::open::code_of);
    browser.play("asking", &link, Some(&codes.join(" ")));
    let [mut attic, cellar] = workers;
    super::open::joined(&mut attic);
    assert_eq!(process::finish(cellar, STARTING).status.code(), Some(2));
}

/// Chromium, and the scripts that drive it.
struct Browser {
    chromium: PathBuf,
    pictures: PathBuf,
}

impl Browser {
    /// The browser of this machine. Without one the test is left out, aloud; where `CI` is set, it fails.
    fn find() -> Option<Self> {
        let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&folders)
            .flat_map(|folder| ["chromium", "chromium-browser", "google-chrome"].map(|name| folder.join(name)));
        let chromium = named.into_iter().chain(found).find(|path| path.is_file());
        let driver = root().join("tests/page/node_modules/playwright-core").is_dir();
        if let (Some(chromium), true) = (chromium, driver) {
            let pictures = process::binaries().join("page");
            std::fs::create_dir_all(&pictures).unwrap();
            return Some(Self { chromium, pictures });
        }
        assert!(std::env::var_os("CI").is_none(), "CI needs chromium, and `npm ci` in tests/page");
        eprintln!("SKIPPED: the page needs chromium, and `npm ci` in tests/page");
        None
    }

    fn play(&self, scene: &str, url: &str, key: Option<&str>) {
        let mut driver = Command::new("node");
        driver.current_dir(root().join("tests/page")).arg("clicks.mjs").args([scene, url]).arg(&self.pictures);
        driver.args(key).env("CHROMIUM", &self.chromium);
        let output = driver.output().expect("node runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{scene}: {said}\nscreenshots: {}", self.pictures.display());
    }
}
