//! The same bits for every cut, chunk, batch, thread count and instruction set.

use crate::{random::noise, step::TokenSet};
use qmesh_models::spec::{Mixer, Window};

use super::*;

/// How a model is run.
#[derive(Clone, Copy, Debug)]
struct Run<'a> {
    cuts: &'a [usize],
    chunk: usize,
    threads: usize,
    simd: Simd,
}

fn prompts(vocab: usize) -> Vec<Vec<u32>> {
    let ids = |len: usize, seed| noise(len, seed).iter().map(|x| (x.abs() * 1e6) as u32 % vocab as u32).collect();
    vec![ids(90, 1), ids(7, 2), ids(40, 3), ids(1, 4)]
}

/// Digests of the logits of every row of every prompt, each run alone in chunks.
fn alone(model: &(ModelSpec, File), run: Run<'_>) -> Vec<Vec<u64>> {
    let mut pipeline = Pipeline::new(model, run.cuts, run.threads, run.simd);
    let digests = prompts(model.0.vocab).into_iter().map(|ids| {
        pipeline.open(5, &with_digest());
        let chunks = ids.chunks(run.chunk).enumerate();
        let rows = chunks.flat_map(|(i, chunk)| pipeline.feed(5, i * run.chunk, chunk, Wants::All));
        let digests = rows.map(|row| row.digest).collect();
        pipeline.close(5);
        digests
    });
    digests.collect()
}

/// The same, with all prompts in one step.
fn together(model: &(ModelSpec, File), run: Run<'_>) -> Vec<Vec<u64>> {
    let mut pipeline = Pipeline::new(model, run.cuts, run.threads, run.simd);
    let prompts = prompts(model.0.vocab);
    (0..4).for_each(|session| pipeline.open(session, &with_digest()));
    let rows =
        |(session, ids): (u64, &Vec<u32>)| SequenceRows { session, position: 0, rows: ids.len(), wants: Wants::All };
    let sequences = (0..).zip(&prompts).map(rows).collect();
    let mut rows = pipeline.step(Step { sequences, ids: prompts.concat(), ..Step::default() }).into_iter();
    prompts.iter().map(|ids| rows.by_ref().take(ids.len()).map(|row| row.digest).collect()).collect()
}

/// The sums of all rows of every prompt, and those of their last rows: a prompt's chunks are added up.
fn sums(model: &(ModelSpec, File), run: Run<'_>) -> Vec<[Vec<i64>; 2]> {
    let mut pipeline = Pipeline::new(model, run.cuts, run.threads, run.simd);
    let mut sum_of = |session, ids: &[u32], wants| {
        pipeline.open(session, &SamplingParameters::default());
        let mut sum = vec![0; model.0.hidden];
        for (at, chunk) in ids.chunks(run.chunk).enumerate() {
            // Another session's rows and samples beside them.
            pipeline.open(9, &with_digest());
            let position = at * run.chunk;
            let wants = if wants == Wants::SumLast && position + chunk.len() < ids.len() { Wants::None } else { wants };
            let other = SequenceRows { session: 9, position: 0, rows: 2, wants: Wants::All };
            let sequences = vec![other, SequenceRows { session, position, rows: chunk.len(), wants }];
            let samples = pipeline.samples(Step { sequences, ids: [&[1, 2], chunk].concat(), ..Step::default() });
            assert_eq!((samples.rows.len(), samples.sums.len()), (2, usize::from(wants != Wants::None)));
            for part in samples.sums {
                sum.iter_mut().zip(part.unwrap().0).for_each(|(sum, part)| *sum += part);
            }
            pipeline.close(9);
        }
        pipeline.close(session);
        sum
    };
    let prompts = prompts(model.0.vocab);
    prompts.iter().map(|ids| [Wants::Sum, Wants::SumLast].map(|wants| sum_of(5, ids, wants))).collect()
}

#[test]
fn sums_of_rows_are_the_same_however_they_are_computed() {
    let simd = Simd::available()[0];
    for name in kinds().into_iter().chain(["quant-Q4_K".to_owned()]) {
        let model = open_model(&name);
        let plain = Run { cuts: &[], chunk: 512, threads: 1, simd };
        let expected = sums(&model, plain);
        // The sum of one row is that row, and of several another one.
        assert!(expected[3][0] == expected[3][1] && expected[0][0] != expected[0][1], "{name}");
        let mut runs: Vec<_> = [1, 7, 40].map(|chunk| Run { chunk, threads: 2, ..plain }).into();
        runs.extend(Simd::available().into_iter().map(|simd| Run { simd, ..plain }));
        let cuts: Vec<usize> = model.0.cuts().take(1).collect();
        runs.push(Run { cuts: &cuts, chunk: 33, ..plain });
        for run in runs {
            assert_eq!(sums(&model, run), expected, "{name}, {run:?}");
        }
    }
}

#[test]
fn cuts_chunks_batches_threads_and_tiers_change_no_bit() {
    let simd = Simd::available()[0];
    let quantised = [
        "quant-Q4_K",
        "quant-Q6_K",
        "quant-Q5_0",
        "quant-Q2_K",
        "quant-IQ4_XS",
        "quant-IQ1_M",
        "quant-IQ2_XXS",
        "quant-NVFP4",
    ]
    .map(str::to_owned);
    for name in kinds().into_iter().chain(quantised) {
        let model = open_model(&name);
        let plain = Run { cuts: &[], chunk: 512, threads: 1, simd };
        let expected = alone(&model, plain);
        let distinct: HashSet<u64> = expected.iter().flatten().copied().collect();
        assert!(distinct.len() > 90 && !distinct.contains(&0), "{name}: digests tell rows apart");
        let mut runs = vec![Run { threads: 2, ..plain }];
        runs.extend([1, 3, 7, 40].map(|chunk| Run { chunk, threads: 2, ..plain }));
        runs.extend(Simd::available().into_iter().map(|simd| Run { simd, ..plain }));
        let cuts: Vec<usize> = model.0.cuts().take(2).collect();
        if cuts.len() > 1 {
            runs.extend([Run { cuts: &cuts[..1], chunk: 7, ..plain }, Run { cuts: &cuts, threads: 2, ..plain }]);
        }
        for run in runs {
            assert_eq!(alone(&model, run), expected, "{name} alone, {run:?}");
        }
        for threads in [1, 2] {
            assert_eq!(together(&model, Run { threads, ..plain }), expected, "{name} together, {threads} threads");
        }
    }
}

/// What may follow at a position: a seventh of the vocabulary.
fn allowed(position: usize, vocab: usize) -> TokenSet {
    let mut bits = vec![0; vocab.div_ceil(8)];
    (0..vocab).filter(|id| (id + position).is_multiple_of(7)).for_each(|id| bits[id / 8] |= 1 << (id % 8));
    TokenSet::of_bits(bits)
}

/// Text under masks after a prompt, in which drafts from `known` stand behind each token: its tokens, and the bits of their
/// log-probabilities.
fn masked_text(model: &(ModelSpec, File), cuts: &[usize], known: &[(u32, u32)], others: bool) -> Vec<(u32, u32)> {
    let mut pipeline = Pipeline::new(model, cuts, 1, Simd::available()[0]);
    let sampling = SamplingParameters { temperature: 0.8, top_p: 0.9, seed: 5, repeat_penalty: 1.3, ..with_digest() };
    (1..=2).for_each(|session| pipeline.open(session, &sampling));
    let (vocab, mut ids, mut sent, mut text) = (model.0.vocab, prompts(model.0.vocab)[2].clone(), 0, Vec::new());
    let prompt = ids.len();
    while text.len() < 12 {
        // The second draft is wrong.
        let next = known.iter().skip(text.len()).take(2).zip([0, 7]);
        let drafts: Vec<u32> = next.map(|((id, _), wrong)| (id + wrong) % vocab as u32).collect();
        let wants = if drafts.is_empty() || sent == 0 { Wants::Last } else { Wants::All };
        let drafts = if wants == Wants::All { &drafts[..] } else { &[][..] };
        let rows = [&ids[sent..], drafts].concat();
        let mut step = Step { ids: rows.clone(), ..Step::default() };
        step.sequences.push(SequenceRows { session: 1, position: sent, rows: rows.len(), wants });
        let first = if wants == Wants::All { sent } else { ids.len() - 1 };
        step.allowed.extend((first..sent + rows.len()).map(|at| ((1, at), allowed(at, vocab))));
        if others {
            step.ids.push(3);
            step.sequences.push(SequenceRows { session: 2, position: 0, rows: 1, wants: Wants::Last });
        }
        let sampled = pipeline.step(step);
        sent = ids.len();
        for (row, draft) in sampled.iter().zip(drafts.iter().map(Some).chain([None])) {
            assert!(allowed(ids.len() - 1, vocab).contains(row.token), "{row:?}");
            text.push((row.token, row.logprob.to_bits()));
            ids.push(row.token);
            if draft != Some(&row.token) {
                break;
            }
            sent += 1;
        }
    }
    assert_eq!(ids.len() - prompt, text.len());
    text.truncate(12);
    text
}

#[test]
fn masks_change_no_bit_at_any_cut_in_any_batch_and_with_drafts() {
    for model in [kind(|spec| spec.layers.len() > 2), kind(ModelSpec::has_states)] {
        let expected = masked_text(&model, &[], &[], false);
        let distinct: HashSet<_> = expected.iter().map(|(id, _)| id).collect();
        assert!(distinct.len() > 3, "{expected:?}");
        for cuts in [&[][..], &[1], &[1, 2]] {
            for known in [&[][..], &expected[..]] {
                for others in [false, true] {
                    let text = masked_text(&model, cuts, known, others);
                    assert_eq!(text, expected, "cut at {cuts:?}, {} drafts, others: {others}", known.len());
                }
            }
        }
    }
}

/// Whether a layer attends to the positions that it chooses.
fn has_indexer(spec: &ModelSpec) -> bool {
    spec.layers.iter().any(|layer| layer.index_rope().is_some())
}

/// Whether a layer attends only to the last positions.
fn has_windows(spec: &ModelSpec) -> bool {
    spec.layers.iter().filter_map(|layer| layer.attention()).any(|attention| attention.window != Window::Full)
}

#[test]
fn rolling_back_and_going_on_is_as_if_nothing_had_happened() {
    goes_back(&kind(|spec| spec.layers.len() > 3 && has_windows(spec)));
    goes_back(&kind(has_indexer));
}

fn goes_back(model: &(ModelSpec, File)) {
    let cut = model.0.cuts().last().unwrap();
    let mut pipeline = Pipeline::new(model, &[cut], 1, Simd::available()[0]);
    let ids = &prompts(model.0.vocab)[0];
    let digests = |rows: Vec<SampledRow>| rows.iter().map(|row| row.digest).collect::<Vec<_>>();
    pipeline.open(1, &with_digest());
    let straight = digests(pipeline.feed(1, 0, ids, Wants::All));
    pipeline.feed(1, 60, &[9, 9, 9, 9, 9, 9, 9], Wants::None);
    let again = digests(pipeline.feed(1, 60, &ids[60..], Wants::All));
    assert_eq!(again, straight[60..]);
    // A session in pages that another one has used finds nothing of it.
    pipeline.close(1);
    pipeline.open(2, &with_digest());
    assert_eq!(digests(pipeline.feed(2, 0, &ids[..10], Wants::All)), straight[..10]);
    assert_eq!(pipeline.feed(2, 10, &ids[10..12], Wants::None), []);
    assert_eq!(digests(pipeline.feed(2, 12, &ids[12..15], Wants::Last)), straight[14..15]);
}

#[test]
fn states_take_back_rows_that_turn_out_wrong() {
    takes_back_rows(&kind(|spec| matches!(spec.layers[0].mixer, Mixer::GatedDelta(_))));
    takes_back_rows(&kind(|spec| matches!(spec.layers[0].mixer, Mixer::StateSpace(_))));
    takes_back_rows(&kind(
        |spec| matches!(&spec.layers[0].mixer, Mixer::GatedDelta(delta) if delta.alphas() > delta.value_heads),
    ));
}

fn takes_back_rows(model: &(ModelSpec, File)) {
    let ids = &prompts(model.0.vocab)[0];
    let digests = |rows: Vec<SampledRow>| rows.iter().map(|row| row.digest).collect::<Vec<_>>();
    for (cuts, threads) in [(&[][..], 2), (&[1, 3], 1)] {
        let mut pipeline = Pipeline::new(model, cuts, threads, Simd::available()[0]);
        pipeline.open(1, &with_digest());
        let straight = digests(pipeline.feed(1, 0, ids, Wants::All));
        // Long steps and short ones, and wrong rows behind them, up to the most that can be taken back.
        pipeline.open(2, &with_digest());
        let mut position = 0;
        for (rows, wrong) in [(1, 15), (1, 16), (30, 0), (5, 11), (16, 0), (20, 16), (2, 3), (1, 1), (1, 0)] {
            let step = [&ids[position..position + rows], &vec![9; wrong]].concat();
            let sampled = digests(pipeline.feed(2, position, &step, Wants::All));
            assert_eq!(sampled[..rows], straight[position..position + rows], "{rows} rows from {position} on");
            position += rows;
        }
        // A step once more, whole, as after a failure, and its last row, as in a scored prompt.
        for first in [position, position, ids.len() - 1] {
            assert_eq!(digests(pipeline.feed(2, first, &ids[first..], Wants::All)), straight[first..]);
        }
    }
}

#[test]
fn a_state_that_cannot_go_back_is_refused_and_goes_on() {
    let model = kind(ModelSpec::has_states);
    let ids = &prompts(model.0.vocab)[0];
    let mut pipeline = Pipeline::new(&model, &[], 1, Simd::available()[0]);
    let digests = |rows: Vec<SampledRow>| rows.iter().map(|row| row.digest).collect::<Vec<_>>();
    pipeline.open(1, &with_digest());
    let straight = digests(pipeline.feed(1, 0, ids, Wants::All));
    pipeline.open(2, &with_digest());
    pipeline.feed(2, 0, &ids[..80], Wants::None);
    let shard = &mut pipeline.0[0];
    let rows = SequenceRows { session: 2, position: 63, rows: 1, wants: Wants::None };
    let step = Step { sequences: vec![rows], ids: vec![1], ..Step::default() };
    assert_eq!(shard.step(&step), Err(EngineError::Settled { session: 2, position: 63, settled: 64 }));
    let prefix = Prefix { session: 2, positions: PAGE_POSITIONS };
    let refused = shard.fork(3, 512, with_digest(), prefix);
    assert!(matches!(refused, Err(EngineError::Prefix { held: 0, .. })), "{refused:?}");
    assert_eq!(digests(pipeline.feed(2, 80, &ids[80..], Wants::All)), straight[80..]);
    // It can always begin again.
    assert_eq!(digests(pipeline.feed(2, 0, ids, Wants::All)), straight);
}

#[test]
fn a_shared_beginning_changes_no_bit() {
    begins_alike(&kind(|spec| spec.layers.len() > 3 && has_windows(spec)));
    begins_alike(&kind(has_indexer));
}

fn begins_alike(model: &(ModelSpec, File)) {
    let cut = model.0.cuts().last().unwrap();
    let mut pipeline = Pipeline::new(model, &[cut], 2, Simd::available()[0]);
    let ids = &prompts(model.0.vocab)[0];
    let digests = |rows: Vec<SampledRow>| rows.iter().map(|row| row.digest).collect::<Vec<_>>();
    pipeline.open(1, &with_digest());
    let straight = digests(pipeline.feed(1, 0, ids, Wants::All));
    let fork = |pipeline: &mut Pipeline, session, source| {
        let prefix = Prefix { session: source, positions: PAGE_POSITIONS };
        pipeline.0.iter_mut().for_each(|shard| shard.fork(session, 512, with_digest(), prefix).unwrap());
    };
    fork(&mut pipeline, 2, 1);
    // Both go on, each its own way, and neither meets the other's rows.
    pipeline.feed(1, 80, &[5; 20], Wants::None);
    assert_eq!(digests(pipeline.feed(2, 64, &ids[64..], Wants::All)), straight[64..]);
    // What is kept outlives whoever made it, and can be begun with again.
    pipeline.0.iter_mut().for_each(|shard| shard.keep(1, 70).unwrap());
    pipeline.close(2);
    fork(&mut pipeline, 3, 1);
    pipeline.close(1);
    assert_eq!(digests(pipeline.feed(3, 64, &ids[64..], Wants::All)), straight[64..]);
    let shard = &mut pipeline.0[0];
    assert_eq!(shard.kv_positions_used(), 128, "what is shared, and what came after it");
    let beyond = Prefix { session: 3, positions: 128 };
    assert!(matches!(shard.fork(4, 512, with_digest(), beyond), Err(EngineError::Prefix { held: 90, .. })));
    let shared = SequenceRows { session: 3, position: 63, rows: 1, wants: Wants::None };
    let step = Step { sequences: vec![shared], ids: vec![1], ..Step::default() };
    assert!(matches!(shard.step(&step), Err(EngineError::Step { .. })));
}

#[test]
fn a_sampled_token_is_the_same_in_any_batch() {
    let model = kind(|spec| spec.layers.len() > 2);
    let sampling = SamplingParameters {
        temperature: 1.3,
        top_p: 0.95,
        repeat_penalty: 1.2,
        presence_penalty: 0.1,
        seed: 42,
        ..SamplingParameters::default()
    };
    let ids = &prompts(model.0.vocab)[2];
    let mut pipeline = Pipeline::new(&model, &[2], 2, Simd::available()[0]);
    pipeline.open(1, &sampling);
    let expected: Vec<u32> = pipeline.feed(1, 0, ids, Wants::All).iter().map(|row| row.token).collect();
    assert!(expected.iter().collect::<HashSet<_>>().len() > 10);
    pipeline.open(2, &sampling);
    pipeline.open(3, &SamplingParameters { sequence: 1, ..sampling });
    for (position, id) in ids.iter().enumerate() {
        let sequence = |session| SequenceRows { session, position, rows: 1, wants: Wants::Last };
        let sequences = vec![sequence(3), sequence(2)];
        let rows = pipeline.step(Step { sequences, ids: vec![*id, *id], ..Step::default() });
        assert_eq!(rows[1].token, expected[position], "position {position}");
    }
}
