//! Shards on the golden models: near the reference, the same whatever the cut and the steps, and wrong rows refused.

use std::{fs, path::Path};

use serde_json::Value;

use super::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny");

/// Every golden model that has a reference of its own, by name.
fn names() -> Vec<String> {
    let files = fs::read_dir(GOLDEN).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.filter_map(|file| file.strip_suffix(".gguf").map(str::to_owned)).collect();
    names.sort();
    assert!(names.len() > 30, "only {names:?} in {GOLDEN}");
    names
}

fn open_model(name: &str) -> ModelFile {
    ModelFile::open(Path::new(GOLDEN).join(format!("{name}.gguf"))).unwrap()
}

/// The shards of a model, one behind another.
struct Pipeline {
    shards: Vec<OracleShard>,
    vocab: usize,
}

impl Pipeline {
    /// Cut before each layer of `cuts`.
    fn open(file: &ModelFile, spec: &ModelSpec, cuts: &[usize]) -> Self {
        let starts = [0].iter().chain(cuts).copied();
        let ends = cuts.iter().copied().chain([spec.layers.len()]);
        let rounding = Rounding { cache: crate::CacheType::F16, ..Rounding::NONE };
        let open = |(start, end)| OracleShard::open(spec, file, start..end, &Device::Cpu, rounding).unwrap();
        Self { shards: starts.zip(ends).map(open).collect(), vocab: spec.vocab }
    }

    /// The logits of each row.
    fn feed(&mut self, session: u64, ids: &[u32], first_position: usize) -> Vec<Vec<f32>> {
        let mut hidden = None;
        for shard in &mut self.shards {
            let input = hidden.as_deref().map_or(Input::Ids(ids), Input::Hidden);
            match shard.forward(session, input, first_position).unwrap() {
                Output::Hidden(rows) => hidden = Some(rows),
                Output::Logits(rows) => return rows.chunks(self.vocab).map(<[f32]>::to_vec).collect(),
            }
        }
        panic!("the last shard has the head")
    }
}

fn log_probability(logits: &[f32], id: usize) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    f64::from(logits[id]) - largest - sum.ln()
}

/// The largest differences from the reference in `golden`: of a log-probability, beyond 5e-4 of what it is, and of a top-20
/// logit, relative to their range.
fn differences(pipeline: &mut Pipeline, golden: &Value) -> (f64, f64) {
    let (mut logprob, mut logit) = (0_f64, 0_f64);
    for (session, prompt) in (0..).zip(golden["prompts"].as_array().unwrap()) {
        let numbers = |key: &str| prompt[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
        let ids: Vec<u32> = numbers("tokens").map(|id| id as u32).collect();
        let rows = pipeline.feed(session, &ids, 0);
        for ((row, next), expected) in rows.iter().zip(&ids[1..]).zip(numbers("token_logprobs")) {
            let difference = (log_probability(row, *next as usize) - expected).abs();
            logprob = logprob.max(difference - 5e-4 * expected.abs());
        }
        let top: Vec<(usize, f64)> = prompt["last_top20"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (entry["id"].as_u64().unwrap() as usize, entry["logit"].as_f64().unwrap()))
            .collect();
        let range = top[0].1 - top[top.len() - 1].1;
        for (id, expected) in top {
            logit = logit.max((f64::from(rows[rows.len() - 1][id]) - expected).abs() / range);
        }
    }
    (logprob, logit)
}

#[test]
fn every_golden_model_is_near_its_reference() {
    for name in names() {
        let file = open_model(&name);
        let golden = serde_json::from_slice(&fs::read(format!("{GOLDEN}/{name}.json")).unwrap()).unwrap();
        let (logprob, logit) = differences(&mut Pipeline::open(&file, file.spec(), &[]), &golden);
        println!("{name}: log-probability {logprob:.1e}, logit {logit:.1e}");
        // The reference is F32 with an f16 cache, in which it adds up in f16 as well.
        assert!(logit < 2e-3 && logprob < 5e-3, "{name}: log-probability {logprob:.1e}, logit {logit:.1e}");
    }
}

#[test]
fn short_contexts_have_factors_of_their_own() {
    let file = open_model("phi3-longrope");
    let short = ModelSpec { context: 256, ..file.spec().clone() };
    let golden = serde_json::from_slice(&fs::read(format!("{GOLDEN}/phi3-longrope-short.json")).unwrap()).unwrap();
    let near = |(logprob, logit): (f64, f64)| logit < 2e-3 && logprob < 5e-3;
    assert!(near(differences(&mut Pipeline::open(&file, &short, &[]), &golden)));
    assert!(!near(differences(&mut Pipeline::open(&file, file.spec(), &[]), &golden)));
}

#[test]
fn cuts_and_steps_change_only_the_order_of_sums() {
    let file = open_model("gemma3");
    let spec = file.spec();
    let ids: Vec<u32> = (0..24).map(|i| i * 31 % spec.vocab as u32).collect();
    let expected = Pipeline::open(&file, spec, &[]).feed(1, &ids, 0);
    let near = |rows: &[Vec<f32>], expected: &[Vec<f32>]| {
        let all = rows.iter().flatten().zip(expected.iter().flatten());
        assert!(
            all.clone().all(|(y, e)| (y - e).abs() < 2e-3),
            "{:?}",
            all.map(|(y, e)| (y - e).abs()).fold(0.0, f32::max)
        );
        assert_eq!(rows.len(), expected.len());
    };
    let mut cut = Pipeline::open(&file, spec, &[1, 4]);
    near(&cut.feed(1, &ids, 0), &expected);
    // Another session in between, then a step back, as after a rejected draft.
    cut.feed(2, &ids[5..9], 0);
    near(&cut.feed(1, &ids[10..13], 10), &expected[10..13]);
    for position in 13..24 {
        near(&cut.feed(1, &ids[position..=position], position), &expected[position..=position]);
    }
    cut.shards.iter_mut().for_each(|shard| shard.close(1));
    let gone = cut.shards[0].forward(1, Input::Ids(&[1]), 24).unwrap_err();
    assert!(matches!(gone, OracleError::Gap { session: 1, held: 0, position: 24 }), "{gone}");
}

#[test]
fn what_a_shard_does_not_take_is_refused() {
    let file = open_model("llama");
    let (spec, count) = (file.spec(), file.spec().layers.len());
    let mut cut = Pipeline::open(&file, spec, &[1]);
    let row = vec![0.5; spec.hidden];
    let [first, last] = &mut cut.shards[..] else { panic!("two shards") };
    fn refused(shard: &mut OracleShard, input: Input<'_>, position: usize) -> OracleError {
        shard.forward(1, input, position).unwrap_err()
    }
    assert!(matches!(refused(first, Input::Hidden(&row), 0), OracleError::Input { embeds: true }));
    assert!(matches!(refused(last, Input::Ids(&[1]), 0), OracleError::Input { embeds: false }));
    assert!(matches!(refused(first, Input::Ids(&[]), 0), OracleError::Rows { elements: 0, .. }));
    assert!(matches!(refused(last, Input::Hidden(&row[1..]), 0), OracleError::Rows { .. }));
    let outside = spec.vocab as u32;
    assert!(
        matches!(refused(first, Input::Ids(&[1, outside]), 0), OracleError::OutsideVocabulary { id, .. } if id == outside)
    );
    assert!(matches!(refused(first, Input::Ids(&[1]), 1), OracleError::Gap { held: 0, position: 1, .. }));
    let open =
        |spec: &ModelSpec, layers| OracleShard::open(spec, &file, layers, &Device::Cpu, Rounding::NONE).unwrap_err();
    assert!(matches!(open(spec, 1..count + 1), OracleError::Layers { .. }));
    assert!(matches!(open(spec, 1..1), OracleError::Layers { .. }));
    assert!(matches!(open(&spec.shard(0..1), 1..2), OracleError::MissingTensor { .. }));
    let changed = |change: &dyn Fn(&mut ModelSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        open(&spec, 0..count)
    };
    assert!(matches!(changed(&|spec| spec.vocab -= 1), OracleError::Shape { .. }));
    assert!(matches!(
        changed(&|spec| spec.layers[0].attention_mut().unwrap().heads = 3),
        OracleError::Heads { heads: 3, .. }
    ));
    assert!(matches!(changed(&|spec| spec.tensors[0].bytes -= 1), OracleError::Length { .. }));
    assert!(matches!(changed(&|spec| spec.tensors[0].offset = 1 << 40), OracleError::Read { .. }));
}
