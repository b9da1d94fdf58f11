//! Against the reference results of the golden files: the same weights, dequantised, in F32.

use serde_json::Value;

use super::*;

/// How far a model's results are from the reference.
#[derive(Debug, Default)]
pub(super) struct Distance {
    /// Log-probabilities of given tokens in the reference, and how far ours are from them.
    logprobs: Vec<(f64, f64)>,
    /// The largest difference of a top-20 logit, relative to the range of the top 20.
    logit: f64,
}

impl Distance {
    pub(super) fn mean(&self) -> f64 {
        self.logprobs.iter().map(|(_, d)| d).sum::<f64>() / self.logprobs.len() as f64
    }

    pub(super) fn largest(&self) -> f64 {
        self.logprobs.iter().map(|(_, d)| *d).fold(0.0, f64::max)
    }
}

/// Runs the prompts of a golden file. Greedy continuations are compared up to the first step whose margin is at most
/// `margin`; a divergence there ends the comparison.
pub(super) fn compare(pipeline: &mut Pipeline, golden: &Value, vocab: usize, margin: f64) -> Distance {
    let mut distance = Distance::default();
    for prompt in golden["prompts"].as_array().unwrap() {
        let ids = numbers(&prompt["tokens"]).map(|id| id as u32).collect::<Vec<_>>();
        pipeline.open(1, &SamplingParameters { top: vocab, ..SamplingParameters::default() });
        let rows = pipeline.feed(1, 0, &ids, Wants::All);
        for (row, expected) in rows.iter().zip(numbers(&prompt["token_logprobs"])) {
            distance.logprobs.push((expected, (f64::from(row.target_logprob) - expected).abs()));
        }
        let last = &rows[rows.len() - 1];
        let top = prompt["last_top20"].as_array().unwrap();
        let logit = |entry: &Value| entry["logit"].as_f64().unwrap();
        let range = logit(&top[0]) - logit(&top[top.len() - 1]);
        for entry in top {
            let id = entry["id"].as_u64().unwrap() as u32;
            let ours = last.top.iter().find(|(other, ..)| *other == id).unwrap().1;
            distance.logit = distance.logit.max((f64::from(ours) - logit(entry)).abs() / range);
        }
        let mut token = last.token;
        let greedy = numbers(&prompt["greedy"]).zip(numbers(&prompt["greedy_margin"]));
        for (i, (expected, step_margin)) in greedy.enumerate() {
            if token != expected as u32 {
                assert!(step_margin <= margin, "greedy step {i}: {token} for {expected}, margin {step_margin}");
                break;
            }
            token = pipeline.feed(1, ids.len() + i, &[token], Wants::Last)[0].token;
        }
        pipeline.close(1);
    }
    distance
}

fn numbers(array: &Value) -> impl Iterator<Item = f64> {
    array.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())
}

fn measure(name: &str, margin: f64) -> Distance {
    let model = open_model(name);
    let golden = fs::read(format!("{GOLDEN}{name}.json")).unwrap();
    let mut pipeline = Pipeline::new(&model, &[], 1, Simd::available()[0]);
    compare(&mut pipeline, &serde_json::from_slice(&golden).unwrap(), model.0.vocab, margin)
}

#[test]
fn every_kind_of_block_in_f32_is_the_reference() {
    for name in kinds() {
        let distance = measure(&name, 1e-3);
        println!("{name}: largest logprob {:.6}, logit {:.6}", distance.largest(), distance.logit);
        assert!(distance.logit <= 2e-3, "{name}: {distance:?}");
        // The reference rounds queries and shares to f16: where log-probabilities reach -70, that alone is worth 0.01
        // (an f64 computation with an f16 cache is as far from it as we are).
        let fits = |(expected, difference): &(f64, f64)| *difference <= f64::max(5e-3, 5e-4 * expected.abs());
        assert!(distance.logprobs.iter().all(fits), "{name}: {distance:?}");
    }
}

#[test]
fn prompts_become_the_vectors_of_the_reference() {
    let vectors: Value = serde_json::from_slice(&fs::read(format!("{GOLDEN}../vectors.json")).unwrap()).unwrap();
    for (name, prompts) in vectors.as_object().unwrap() {
        let model = open_model(name);
        let mut pipeline = Pipeline::new(&model, &[], 1, Simd::available()[0]);
        for prompt in prompts.as_array().unwrap() {
            let ids = numbers(&prompt["tokens"]).map(|id| id as u32).collect::<Vec<_>>();
            for (pooling, wants, rows) in
                [("mean", Wants::Sum, ids.len()), ("last", Wants::SumLast, ids.len()), ("first", Wants::SumLast, 1)]
            {
                pipeline.open(1, &SamplingParameters::default());
                let sequences = vec![SequenceRows { session: 1, position: 0, rows, wants }];
                let step = Step { sequences, ids: ids[..rows].to_vec(), ..Step::default() };
                let RowSum(sum) = pipeline.samples(step).sums.remove(0).unwrap();
                pipeline.close(1);
                let sum: Vec<f64> = sum.into_iter().map(|value| value as f64).collect();
                let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
                let expected = numbers(&prompt[pooling]).collect::<Vec<_>>();
                let apart = sum.iter().zip(&expected).map(|(ours, theirs)| (ours / length - theirs).abs());
                let apart = apart.fold(0.0, f64::max);
                println!("{name}, {} ids, {pooling}: {apart:.6}", ids.len());
                assert!(expected.len() == sum.len() && apart <= 1e-3, "{name}, {} ids, {pooling}: {apart}", ids.len());
            }
        }
    }
}

#[test]
fn quantised_types_are_as_close_as_the_yardstick() {
    // The other engine's d, and how many times it ours may be: where it too quantises activations in blocks of 32, whose
    // d is larger on these 45 tokens is chance; where its blocks have 256, ours must be smaller.
    let yardsticks = [
        ("F16", 0.0004, 1.0),
        ("BF16", 0.0022, 1.0),
        ("Q8_0", 0.0065, 1.25),
        ("Q4_0", 0.0058, 1.25),
        ("Q4_1", 0.0080, 1.25),
        ("Q5_0", 0.0061, 1.25),
        ("Q5_1", 0.0071, 1.25),
        ("MXFP4", 0.0083, 1.25),
        ("Q2_K", 0.0092, 1.0),
        ("Q3_K", 0.0092, 1.0),
        ("Q4_K", 0.0088, 1.0),
        ("Q5_K", 0.0104, 1.0),
        ("Q6_K", 0.0104, 1.0),
        ("IQ4_NL", 0.0066, 1.0),
        ("IQ4_XS", 0.0075, 1.0),
        ("IQ1_S", 0.0104, 1.0),
        ("IQ1_M", 0.0095, 1.0),
        ("IQ2_XXS", 0.0102, 1.0),
        ("IQ2_XS", 0.0096, 1.0),
        ("IQ2_S", 0.0102, 1.0),
        ("IQ3_XXS", 0.0112, 1.0),
        ("IQ3_S", 0.0092, 1.0),
        ("NVFP4", 0.0073, 1.25),
        ("TQ1_0", 0.0114, 1.0),
        ("TQ2_0", 0.0114, 1.0),
        ("Q1_0", 0.0040, 1.25),
    ];
    for (name, yardstick, factor) in yardsticks {
        let distance = measure(&format!("quant-{name}"), 0.35);
        let (mean, largest) = (distance.mean(), distance.largest());
        println!("{name}: d {mean:.5}, largest {largest:.5}, yardstick {yardstick}");
        assert!(mean <= factor * yardstick, "{name}: d {mean} exceeds {factor} times {yardstick}");
    }
}
