//! Whether a model that drafts is expected to pay.

use super::*;
use crate::plan::drafted::{Drafting, predict_drafts};

#[test]
fn a_draft_model_pays_over_slow_links_and_costs_what_it_takes() {
    let spec = spec(&[10_000_000; 20], 1000, HeadMatrix::Tied);
    let workers = vec![fast(worker(0, 1 << 30, 4), 10.0), fast(worker(1, 1 << 30, 4), 10.0)];
    let mut input = PlanInput { stages_least: 2, ..input(&spec, workers) };
    let drafting = |token_s| Drafting { model: "small".to_owned(), memory_bytes: 1, token_s, most: 15 };
    let predicted =
        |input: &PlanInput<'_>, token_s| predict_drafts(input, &solve(input).unwrap(), &drafting(token_s)).unwrap();
    // A token of the model takes 20 ms, and a drafted one 18.
    let near = predicted(&input, 0.018);
    assert!(!near.pays && near.tokens_per_s < near.alone_tokens_per_s * 1.05, "{near:?}");
    let alone = predict(&input, &solve(&input).unwrap(), 1).unwrap().tokens_per_s;
    assert!((near.alone_tokens_per_s / alone - 1.0).abs() < 1e-9, "as without drafts");
    for number in [0, 1] {
        input.links.set_own(number, Link { rtt_ms: 100.0, bytes_per_s: None });
    }
    let far = predicted(&input, 0.018);
    assert!(far.pays && far.tokens_per_s > 1.8 * far.alone_tokens_per_s, "{far:?}");
    let cheap = predicted(&input, 0.001);
    assert!(cheap.drafts > far.drafts && cheap.tokens_per_s > far.tokens_per_s, "{cheap:?}");
    // No more than 1 / (1 − a) times, whatever it costs.
    assert!(cheap.tokens_per_s < cheap.alone_tokens_per_s / (1.0 - cheap.assumed_acceptance));
    let unknown = PlanInput { workers: vec![worker(0, 1 << 30, 4)], stages_least: 1, ..input.clone() };
    assert_eq!(predict_drafts(&unknown, &solve(&unknown).unwrap(), &drafting(0.01)), None);
}
