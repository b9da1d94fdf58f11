//! What a worker's machine has of a model already.

use std::fs;

use qmesh_models::catalog;
use qmesh_tests::{http, stand_in};

use super::{MODEL, STARTING, Serving, number};

#[test]
fn a_model_that_was_pulled_on_a_workers_machine_is_not_sent_to_it() {
    let model = stand_in::file();
    let serving = Serving::start_with(&model.to_string_lossy(), &[]);
    let file = catalog::ALL.iter().find(|model| model.name == MODEL).unwrap().file;
    // The worker's cache is a folder of its name.
    let folder = serving.folder.path().join("attic/models/catalog").join(MODEL);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(&model, folder.join(file)).unwrap();
    let mut worker = serving.join("attic", &[]);
    worker.wait_for(STARTING, "the welcome", |line| line.contains("joined ").then_some(()));
    serving.wait_ready(1);
    let status = http::get(&serving.path("/api/status")).body;
    assert_eq!(number(&status, "weight_bytes_sent"), 0, "{status}");
}
