//! Filters on hand cases, the distribution of draws, and the row's other values.

use super::*;

fn greedy() -> SamplingParameters {
    SamplingParameters::default()
}

fn sample(parameters: &SamplingParameters, logits: &[f32], history: &[u32]) -> SampledRow {
    parameters.sample(Simd::available()[0], logits, None, history, None).unwrap()
}

/// The ids drawn at 20000 positions, counted.
fn draws(parameters: &SamplingParameters, logits: &[f32]) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    let history = vec![0; 20_000];
    for position in 0..history.len() {
        let ids = &history[..position];
        counts[parameters.draw(Simd::available()[0], logits, ids) as usize] += 1;
    }
    counts
}

fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let exponentials: Vec<f64> = logits.iter().map(|x| f64::from(x / temperature).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|e| e / sum).collect()
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_of_equals() {
    let row = sample(&SamplingParameters { top: 3, ..greedy() }, &[1.0, 3.0, 2.0, 3.0, 0.0], &[]);
    assert_eq!(row.token, 1);
    assert_eq!(row.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 2]);
    let expected = softmax(&[1.0, 3.0, 2.0, 3.0, 0.0], 1.0)[1].ln();
    assert!((f64::from(row.logprob) - expected).abs() < 1e-6 && row.top[0].2 == row.logprob);
    assert!(row.target_logprob.is_nan() && row.digest == 0);
    let zeros = sample(&SamplingParameters { top: 2, ..greedy() }, &[-0.0, 0.0], &[]);
    assert_eq!((zeros.token, zeros.top[0].0), (0, 0));
}

#[test]
fn logits_that_are_not_finite_give_no_row() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let row = greedy().sample(Simd::available()[0], &[0.0, bad], None, &[], None);
        assert_eq!(row, Err(Unsampled::NotFinite));
    }
}

#[test]
fn the_target_and_the_digest_are_of_the_raw_logits() {
    let parameters = SamplingParameters { logit_bias: vec![(0, 9.0)], digest: LogitsDigest::Compute, ..greedy() };
    let row = parameters.sample(Simd::available()[0], &[0.0, 1.0], None, &[], Some(1)).unwrap();
    assert_eq!(row.token, 0);
    assert!((row.target_logprob + (1.0 + (-1.0_f32).exp()).ln()).abs() < 1e-6);
    let bytes = [0.0_f32.to_le_bytes(), 1.0_f32.to_le_bytes()].concat();
    assert_eq!(row.digest.to_le_bytes(), blake3::hash(&bytes).as_bytes()[..8]);
}

#[test]
fn what_may_not_follow_is_out_of_reach() {
    let logits: Vec<f32> = (0..40).map(|i| (i * 7 % 40) as f32 / 4.0).collect();
    let allowed = TokenSet::of_bits(vec![0b1000_0010, 0, 0b1]);
    let all = SamplingParameters {
        temperature: 2.0,
        repeat_penalty: 0.01,
        frequency_penalty: -2.0,
        logit_bias: vec![(0, 100.0), (1, -100.0)],
        top: 9,
        digest: LogitsDigest::Compute,
        ..greedy()
    };
    let simd = Simd::available()[0];
    let filters = [
        SamplingParameters::clone(&all),
        SamplingParameters { temperature: 0.0, ..all.clone() },
        SamplingParameters { top_k: 30, top_p: 0.999, ..all.clone() },
        SamplingParameters { top_p: 1.0, min_p: 0.0001, ..all.clone() },
    ];
    for parameters in filters {
        for seed in 0..50 {
            let parameters = SamplingParameters { seed, ..parameters.clone() };
            let row = parameters.sample(simd, &logits, Some(&allowed), &[5, 5, 5, 0], Some(0)).unwrap();
            assert!([1, 7, 16].contains(&row.token), "{parameters:?} drew {}", row.token);
            assert_eq!((row.target_logprob, row.digest), (f32::NEG_INFINITY, digest(&logits)));
            // Log-probabilities are those among what may follow.
            let total: f64 = row.top.iter().map(|top| f64::from(top.2).exp()).sum();
            assert_eq!(row.top.iter().map(|top| top.0).collect::<Vec<_>>(), [16, 7, 1]);
            assert!((total - 1.0).abs() < 1e-6, "{total}");
        }
    }
    let all_may = TokenSet::of_bits(vec![0xff; 5]);
    let row = |allowed| all.sample(simd, &logits, allowed, &[3, 4], Some(2)).unwrap();
    assert_eq!(row(Some(&all_may)), row(None), "a mask that lets all pass changes no bit");
    for nothing in [vec![], vec![0; 9], vec![0, 0, 0, 0, 0, 0xff]] {
        let row = all.sample(simd, &logits, Some(&TokenSet::of_bits(nothing)), &[], None);
        assert_eq!(row, Err(Unsampled::NothingAllowed));
    }
}

#[test]
fn penalties_see_the_window_only() {
    let logits = [2.0, -1.0, 1.0, 0.5];
    let adjusted = |parameters: SamplingParameters| parameters.adjust(&logits, &[3, 0, 1, 0]).into_owned();
    let repeat = SamplingParameters { repeat_penalty: 2.0, penalty_window: 3, ..greedy() };
    assert_eq!(adjusted(repeat), [1.0, -2.0, 1.0, 0.5]);
    let counted = SamplingParameters { frequency_penalty: 0.5, presence_penalty: 0.25, ..greedy() };
    assert_eq!(adjusted(counted.clone()), [0.75, -1.75, 1.0, -0.25]);
    assert_eq!(adjusted(SamplingParameters { penalty_window: 0, ..counted }), logits);
    let biased = SamplingParameters { logit_bias: vec![(2, -3.0), (2, 1.0)], ..greedy() };
    assert_eq!(adjusted(biased), [2.0, -1.0, -1.0, 0.5]);
}

#[test]
fn filters_keep_what_their_definitions_say() {
    // Probabilities 0.5, 0.3, 0.15, 0.05 in another order.
    let logits = [0.15_f32.ln(), 0.5_f32.ln(), 0.05_f32.ln(), 0.3_f32.ln()];
    let kept = |parameters: SamplingParameters| {
        let warm = SamplingParameters { temperature: 3.0, ..parameters };
        let counts = draws(&warm, &logits);
        (0..4).filter(|id| counts[*id] > 0).collect::<Vec<_>>()
    };
    assert_eq!(kept(SamplingParameters { top_k: 2, ..greedy() }), [1, 3]);
    assert_eq!(kept(SamplingParameters { top_k: 9, ..greedy() }), [0, 1, 2, 3]);
    assert_eq!(kept(SamplingParameters { top_p: 0.49, ..greedy() }), [1]);
    assert_eq!(kept(SamplingParameters { top_p: 0.7, ..greedy() }), [1, 3]);
    assert_eq!(kept(SamplingParameters { top_p: 0.9, ..greedy() }), [0, 1, 3]);
    // Of the two that top-k leaves, the first alone has 0.625.
    assert_eq!(kept(SamplingParameters { top_k: 2, top_p: 0.6, ..greedy() }), [1]);
    assert_eq!(kept(SamplingParameters { min_p: 0.29, ..greedy() }), [0, 1, 3]);
    assert_eq!(kept(SamplingParameters { min_p: 1.0, ..greedy() }), [1]);
    // Nearest to the entropy of 1.142 are 0.3, 0.5, 0.15, 0.05, in this order.
    assert_eq!(kept(SamplingParameters { typical_p: 0.2, ..greedy() }), [3]);
    assert_eq!(kept(SamplingParameters { typical_p: 0.7, ..greedy() }), [1, 3]);
    assert_eq!(kept(SamplingParameters { typical_p: 0.9, ..greedy() }), [0, 1, 3]);
    assert_eq!(kept(SamplingParameters { typical_p: 0.6, top_k: 2, ..greedy() }), [1]);
    assert_eq!(kept(SamplingParameters { typical_p: 0.7, top_p: 0.6, ..greedy() }), [1]);
}

#[test]
fn top_choices_are_left_out_by_a_chance_of_the_position() {
    let logits = [0.15_f32.ln(), 0.5_f32.ln(), 0.05_f32.ln(), 0.3_f32.ln()];
    let xtc = |xtc_probability, xtc_threshold| SamplingParameters { xtc_probability, xtc_threshold, ..greedy() };
    let kept = |parameters: SamplingParameters| {
        let counts = draws(&SamplingParameters { temperature: 3.0, ..parameters }, &logits);
        (0..4).filter(|id| counts[*id] > 0).collect::<Vec<_>>()
    };
    assert_eq!(kept(xtc(1.0, 0.1)), [0, 2]);
    assert_eq!(kept(xtc(1.0, 0.29)), [0, 2, 3]);
    assert_eq!(kept(xtc(1.0, 0.4)), [0, 1, 2, 3], "one alone stays");
    assert_eq!(kept(xtc(0.0, 0.1)), [0, 1, 2, 3]);
    assert_eq!(kept(SamplingParameters { min_p: 0.5, ..xtc(1.0, 0.1) }), [3], "of what the filters before leave");
    // Without noise the choice is the best of what is left: half of the time the third best.
    let counts = draws(&xtc(0.5, 0.1), &logits);
    assert!(counts[0].abs_diff(10_000) < 400 && counts[0] + counts[1] == 20_000, "{counts:?}");
    // The same position has the same chance, whatever was drawn before.
    assert_eq!(counts, draws(&xtc(0.5, 0.1), &logits));
    // What may not follow is not what is left.
    let allowed = TokenSet::of_bits(vec![0b1010]);
    for typical_p in [1.0, 0.99] {
        let parameters = SamplingParameters { typical_p, temperature: 1.0, ..xtc(1.0, 0.0) };
        let row = parameters.sample(Simd::available()[0], &logits, Some(&allowed), &[], None).unwrap();
        assert_eq!(row.token, 3);
    }
}

#[test]
fn what_repeats_is_penalised_whatever_the_temperature() {
    let dry = Dry {
        multiplier: 4.0,
        base: 2.0,
        allowed_length: 2,
        window: 64,
        breakers: TokenSet::default(),
        breaking_sequences: vec![],
    };
    let parameters = SamplingParameters { dry: Some(dry), ..greedy() };
    let history = [1, 2, 3, 0, 1, 2];
    assert_eq!(sample(&parameters, &[0.0, 0.5, 0.0, 2.0], &history).token, 1);
    assert_eq!(sample(&parameters, &[0.0, 0.5, 0.0, 5.0], &history).token, 3);
    assert_eq!(sample(&greedy(), &[0.0, 0.5, 0.0, 2.0], &history).token, 3);
}

#[test]
fn top_p_finds_a_nucleus_of_thousands() {
    let logits: Vec<f32> = (0..20_000).map(|i| ((i * 7919) % 20_000) as f32 * 1e-5).collect();
    let parameters = SamplingParameters { temperature: 1.0, top_p: 0.5, ..greedy() };
    let kept = parameters.most_likely_ids(Simd::available()[0], &logits);
    let mut p = softmax(&logits, 1.0);
    p.sort_by(|a, b| b.total_cmp(a));
    let mut sum = 0.0;
    let expected = p.iter().position(|p| {
        sum += p;
        sum >= 0.5
    });
    assert!(kept.len().abs_diff(expected.unwrap() + 1) <= 1, "{} for {expected:?}", kept.len());
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.3, -1.0, 1.4, 0.0, 2.0, -0.4, 0.9, 1.1];
    for temperature in [0.7, 1.0, 1.8] {
        let parameters = SamplingParameters { temperature, seed: 11, ..greedy() };
        let counts = draws(&parameters, &logits);
        let total: usize = counts.iter().sum();
        let chi_square: f64 = softmax(&logits, temperature)
            .iter()
            .zip(&counts)
            .map(|(p, count)| (*count as f64 - p * total as f64).powi(2) / (p * total as f64))
            .sum();
        // Seven degrees of freedom: one run in a thousand exceeds 24.3.
        assert!(chi_square < 24.3, "temperature {temperature}: {chi_square}, {counts:?}");
    }
}
