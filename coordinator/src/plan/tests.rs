//! The planner against brute force, and the words of its errors.

mod cuts;
mod drafted;
mod experts;
mod prompts;
mod quantisations;

use qmesh_models::{
    spec::{
        Activation, AttentionSpec, Bias, Ffn, HeadMatrix, HeadSpec, KvSource, LayerIndex, LayerSpec, LayerTensor,
        Mixer, NormKind, NormPlacement, NormSpec, OutputGate, OutputScale, QkNorm, Sinks, TensorRole, TensorSpec,
        Values, Window,
    },
    tensor::TensorType,
};

use super::{
    alternatives::alternatives,
    prediction::{Bottleneck, predict},
    *,
};

/// splitmix64: enough for instances, and no dependency.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn spec(layer_bytes: &[u64], embedding_bytes: u64, head: HeadMatrix) -> ModelSpec {
    let tensor = |role, bytes| TensorSpec {
        role,
        name: format!("{role:?}"),
        rows: 16,
        cols: 1,
        dtype: TensorType::F32,
        part: 0,
        offset: 0,
        bytes,
    };
    let norm = NormSpec { kind: NormKind::Rms, eps: 1e-6 };
    let layer = LayerSpec {
        mixer: Mixer::Attention(AttentionSpec {
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            scale: 1.0,
            soft_cap: None,
            sinks: Sinks::None,
            window: Window::Full,
            rope: None,
            qk_norm: QkNorm::None,
            temperature: None,
            source: KvSource::Own,
            values: Values::Own,
            blocks: None,
            qkv_bias: Bias::None,
            output_bias: Bias::None,
            output_gate: OutputGate::None,
        }),
        ffn: Ffn::Gated { inner: 32, activation: Activation::Silu, bias: Bias::None },
        norms: NormPlacement::Pre,
        norm,
        residual_scale: 1.0,
        output_scale: OutputScale::None,
    };
    let mut tensors = vec![tensor(TensorRole::Embedding, embedding_bytes), tensor(TensorRole::OutputNorm, 64)];
    if head == HeadMatrix::Own {
        tensors.push(tensor(TensorRole::Output, embedding_bytes * 2));
    }
    for (index, &bytes) in layer_bytes.iter().enumerate() {
        tensors.push(tensor(TensorRole::Layer(LayerIndex(index), LayerTensor::Q), bytes));
    }
    ModelSpec {
        name: "toy".to_owned(),
        family: "toy".to_owned(),
        hidden: 16,
        vocab: 100,
        context: 1000,
        embedding_scale: 1.0,
        layer_inputs: None,
        layers: vec![layer; layer_bytes.len()],
        head: HeadSpec { norm, matrix: head, soft_cap: None, logit_scale: 1.0 },
        tensors,
    }
}

fn worker(index: usize, memory_bytes: u64, threads: u32) -> Capacity {
    Capacity { name: format!("w{index}"), memory_bytes, threads, speed: None }
}

fn input(spec: &ModelSpec, workers: Vec<Capacity>) -> PlanInput<'_> {
    PlanInput::new(spec, workers, 100, 100, 8)
}

/// How often a layer and the head are passed.
fn passes(workload: Workload) -> [u64; 2] {
    match workload {
        Workload::Mixed => [4, 1],
        Workload::Prompts => [1, 0],
        Workload::Replies => [1, 1],
    }
}

/// (workers unused, slowest stage, sum of stages) of a cut, from the definition.
fn score(input: &PlanInput<'_>, cut: &[(usize, Range<usize>)]) -> (usize, f64, f64) {
    let times: Vec<f64> = cut
        .iter()
        .map(|(worker, layers)| {
            let tied = input.spec.head.matrix == HeadMatrix::Tied && layers.end == input.spec.layers.len();
            let reads = |t: &&TensorSpec| input.spec.holds(layers, t.role) && (t.role != TensorRole::Embedding || tied);
            let [layers, head] = passes(input.workload);
            let passes = |t: &TensorSpec| if matches!(t.role, TensorRole::Layer(..)) { layers } else { head };
            let bytes: u64 = input.spec.tensors.iter().filter(reads).map(|t| t.bytes * passes(t)).sum();
            bytes as f64 / f64::from(input.workers[*worker].threads)
        })
        .collect();
    (input.workers.len() - cut.len(), times.iter().copied().fold(0.0, f64::max), times.iter().sum())
}

/// Every way to give layers from `placed` on to workers that are not in `cut`, in any order, under their limits.
fn every_cut(
    input: &PlanInput<'_>,
    costs: &Costs<'_>,
    placed: usize,
    found: &mut Vec<Vec<(usize, Range<usize>)>>,
    cut: &mut Vec<(usize, Range<usize>)>,
) {
    let layers = input.spec.layers.len();
    if placed == layers {
        found.push(cut.clone());
        return;
    }
    for worker in 0..input.workers.len() {
        if cut.iter().any(|(used, _)| *used == worker) {
            continue;
        }
        for end in placed + 1..=layers {
            if costs.share(placed..end, &input.workers[worker]).is_ok() {
                cut.push((worker, placed..end));
                every_cut(input, costs, end, found, cut);
                cut.pop();
            }
        }
    }
}

fn cuts(input: &PlanInput<'_>) -> Vec<Vec<(usize, Range<usize>)>> {
    let mut found = Vec::new();
    every_cut(input, &Costs::new(input), 0, &mut found, &mut Vec::new());
    found
}

fn random_spec(random: &mut Random, layers_most: u64) -> ModelSpec {
    let layer_bytes: Vec<u64> = (0..1 + random.below(layers_most)).map(|_| 1000 * (1 + random.below(5))).collect();
    let head = if random.below(2) == 0 { HeadMatrix::Tied } else { HeadMatrix::Own };
    spec(&layer_bytes, 1000 * random.below(8), head)
}

fn random_workers(random: &mut Random, spec: &ModelSpec, most: u64) -> Vec<Capacity> {
    let count = 1 + random.below(most) as usize;
    let one = |w| {
        let (spare, threads) = (1_000 * random.below(80), 1 + random.below(4) as u32);
        worker(w, bare_bytes(spec, threads) + spare, threads)
    };
    (0..count).map(one).collect()
}

#[test]
fn without_speeds_all_that_can_work_do_and_none_is_slower_than_it_must_be() {
    let (mut solved, mut refused) = (0, 0);
    for seed in 0..400 {
        let random = &mut Random(seed);
        let spec = random_spec(random, 5);
        let workers = random_workers(random, &spec, 4);
        let workload = [Workload::Mixed, Workload::Prompts, Workload::Replies][random.below(3) as usize];
        let input = PlanInput { workload, ..input(&spec, workers) };
        let cuts = cuts(&input);
        let best = cuts.iter().map(|cut| score(&input, cut)).min_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(fits(&input), best.is_some(), "seed {seed}");
        match (solve(&input), best) {
            (Ok(plan), Some(best)) => {
                let cut: Vec<_> = plan.stages.iter().map(|s| (s.worker, s.layers.clone())).collect();
                assert!(cuts.contains(&cut), "seed {seed}: {cut:?} is no cut");
                let score = score(&input, &cut);
                assert!(score.0 == best.0 && score.1 <= best.1 + 0.05, "seed {seed}: {score:?} {best:?}");
                solved += 1;
            }
            (Err(PlanError::DoesNotFit(shortfall)), None) => {
                check_advice(&input, &shortfall, seed);
                refused += 1;
            }
            (plan, best) => panic!("seed {seed}: {plan:?}, brute force {best:?}"),
        }
    }
    assert!(solved > 50 && refused > 50, "{solved} solved, {refused} refused");
}

/// Speeds for some of the workers, links for all of them, of which some are cut.
fn timed<'a>(random: &mut Random, spec: &'a ModelSpec) -> PlanInput<'a> {
    let mut workers = random_workers(random, spec, 4);
    for worker in &mut workers {
        let ps = 1000.0 * (1 + random.below(30)) as f64;
        let point = |rows, times: u64| SpeedPoint {
            rows,
            layers_ps_per_byte: ps * times as f64,
            head_ps_per_byte: ps * times as f64,
        };
        worker.speed = Speed::measured(vec![point(1, 1), point(256, 20 + random.below(60))]);
    }
    let mut links = Links::default();
    for from in 0..workers.len() {
        links.set_own(from, Link { rtt_ms: random.below(3) as f64 * 0.05, bytes_per_s: None });
        for to in 0..workers.len() {
            match random.below(8) {
                0 => links.cut(End::Worker(from), End::Worker(to)),
                1 => links.set_pair(End::Worker(from), End::Worker(to), Link { rtt_ms: 0.5, bytes_per_s: Some(1e6) }),
                _ => {}
            }
        }
    }
    let goal = [Goal::Latency, Goal::Throughput, Goal::Balanced][random.below(3) as usize];
    let stages_least = random.below(3) as usize;
    PlanInput { links, goal, stages_least, ..input(spec, workers) }
}

/// (a token's time, the largest load) of a cut, from the definition; `None` where rows cannot get through.
fn times(input: &PlanInput<'_>, cut: &[(usize, Range<usize>)]) -> Option<(u64, u64)> {
    let costs = Costs::new(input);
    let stages: Vec<_> = cut.iter().map(|(w, layers)| costs.stage_time(&whole(layers), &input.speed(*w))).collect();
    let ends: Vec<End> = cut.iter().map(|(worker, _)| End::Worker(*worker)).collect();
    let ends = [vec![End::Coordinator], ends, vec![End::Coordinator]].concat();
    let hops: Option<Vec<u64>> = ends.windows(2).map(|pair| input.hop_ps(pair[0], pair[1])).collect();
    let token = hops?.iter().sum::<u64>() + stages.iter().map(|s| s.token).sum::<u64>();
    Some((token, stages.iter().map(|s| s.load).max()?))
}

#[test]
fn with_speeds_no_plan_is_better() {
    let (mut solved, mut split) = (0, 0);
    for seed in 1000..1600 {
        let random = &mut Random(seed);
        let spec = random_spec(random, 4);
        let input = timed(random, &spec);
        let cuts: Vec<_> = cuts(&input).into_iter().filter_map(|cut| Some((times(&input, &cut)?, cut.len()))).collect();
        let most = cuts.iter().map(|(_, stages)| *stages).max().unwrap_or(0);
        let enough: Vec<_> =
            cuts.into_iter().filter(|(_, s)| *s >= most.min(input.stages_least)).map(|c| c.0).collect();
        let Some(fastest) = enough.iter().map(|(token, _)| *token).min() else {
            assert!(!fits(&input), "seed {seed}");
            continue;
        };
        let plan = solve(&input).unwrap();
        let cut: Vec<_> = plan.stages.iter().map(|s| (s.worker, s.layers.clone())).collect();
        let (token, load) = times(&input, &cut).unwrap_or_else(|| panic!("seed {seed}: {cut:?} has no way"));
        let limit = match input.goal {
            Goal::Latency => fastest,
            Goal::Balanced => fastest + fastest / 20,
            Goal::Throughput => u64::MAX,
        };
        assert!(token <= limit && cut.len() >= most.min(input.stages_least), "seed {seed}: {token} {limit} {cut:?}");
        if input.goal != Goal::Latency {
            let least = enough.iter().filter(|(token, _)| *token <= limit).map(|(_, load)| *load).min();
            assert_eq!(Some(load), least, "seed {seed}: {cut:?}");
        }
        assert_eq!(plan.gap_percent, 0.0, "seed {seed}");
        solved += 1;
        split += usize::from(cut.len() > 1);
    }
    assert!(solved > 300 && split > 100, "{solved} solved, {split} of them over several workers");
}

/// All of these layers, in memory.
fn whole(layers: &Range<usize>) -> Share {
    Share { layers: layers.clone(), experts_in_memory: None }
}

/// What a worker with so many threads needs beside weights and KV, wherever its layers lie.
fn bare_bytes(spec: &ModelSpec, threads: u32) -> u64 {
    let (input, all) = (input(spec, Vec::new()), whole(&(0..spec.layers.len())));
    let Footprint { buffer_bytes, process_bytes, .. } = Costs::new(&input).footprint(&all, threads);
    buffer_bytes + process_bytes
}

/// What a shortfall promises holds, and one step less does not.
fn check_advice(input: &PlanInput<'_>, shortfall: &Shortfall, seed: u64) {
    let mut helped = input.clone();
    helped.workers.push(worker(9, shortfall.extra_worker_bytes, 1));
    assert!(fits(&helped), "seed {seed}: {shortfall:?}");
    let with_positions = |positions| PlanInput { kv_positions: positions, context: positions, ..input.clone() };
    let positions = shortfall.fitting_kv_positions;
    assert!(positions == 0 || fits(&with_positions(positions)), "seed {seed}: {shortfall:?}");
    assert!(!fits(&with_positions(positions + 1)), "seed {seed}: {shortfall:?}");
}

fn fast(mut worker: Capacity, gigabytes_per_s: f64) -> Capacity {
    worker.speed = Some(Speed::of_bandwidth(gigabytes_per_s * 1e9));
    worker
}

#[test]
fn a_slow_link_is_a_reason_not_to_split() {
    let spec = spec(&[10_000_000; 20], 1000, HeadMatrix::Tied);
    let workers = || vec![fast(worker(0, 1 << 30, 4), 20.0), fast(worker(1, 1 << 30, 4), 20.0)];
    let mut input = input(&spec, workers());
    let stages = |input: &PlanInput<'_>| solve(input).unwrap().stages.len();
    assert_eq!(stages(&input), 2, "on one machine the second is worth it");
    input.links.set_own(1, Link { rtt_ms: 50.0, bytes_per_s: None });
    assert_eq!(stages(&input), 1);
    assert_eq!(solve(&input).unwrap().notes, ["more workers would make nothing faster: nothing to do for w1"]);
    assert_eq!(stages(&PlanInput { goal: Goal::Throughput, ..input.clone() }), 2);
    // Where two stages are wanted, the plan says what one alone would do.
    let split = PlanInput { stages_least: 2, ..input.clone() };
    let plan = solve(&split).unwrap();
    let prediction = predict(&split, &plan, 1).unwrap();
    let others = alternatives(&split, &plan, 1);
    let verdict = others.verdict(&plan, &prediction).unwrap();
    assert!(verdict.starts_with("do not split: w0 alone is faster; one stream gets 9"), "{verdict}");
    assert_eq!(alternatives(&input, &solve(&input).unwrap(), 1).verdict(&solve(&input).unwrap(), &prediction), None);
}

#[test]
fn what_is_predicted_is_what_the_formulas_say() {
    let spec = spec(&[10_000_000; 20], 1000, HeadMatrix::Tied);
    let workers = vec![fast(worker(0, 1 << 30, 4), 10.0), fast(worker(1, 1 << 30, 4), 10.0)];
    let input = PlanInput { stages_least: 2, ..input(&spec, workers) };
    let plan = solve(&input).unwrap();
    let prediction = predict(&input, &plan, 8).unwrap();
    // 100 MB a stage at 10 GB/s, and three hops of 0.15 ms; attention reads a little more.
    assert!((20.45..20.5).contains(&(1e3 / prediction.tokens_per_s)), "{prediction:?}");
    assert!((0.45..0.46).contains(&prediction.hops_ms));
    // Two groups of four, which take 1.5 times as long as one row, and are on links a little: a third would fill the gap.
    assert!((255.0..264.0).contains(&prediction.streams_tokens_per_s), "{prediction:?}");
    assert_eq!(prediction.bottleneck, Bottleneck::Streams);
    let lopsided = PlanInput { cut: Some(vec![15]), ..input.clone() };
    let bound = predict(&lopsided, &solve(&lopsided).unwrap(), 64).unwrap().bottleneck;
    assert_eq!(bound, Bottleneck::Stage(0));
    // One chunk of 8 rows after the other, when all stages have opened the session: 0.3 ms there and back.
    let [one, sixteen] = [1, 16].map(|tokens| prediction.ttft_ms(tokens));
    assert!((20.7..20.9).contains(&one) && (44.3 + 22.0..67.3).contains(&sixteen), "{one} {sixteen}");
    let unknown = PlanInput { workers: vec![worker(0, 1 << 30, 4)], ..input.clone() };
    assert_eq!(predict(&unknown, &solve(&unknown).unwrap(), 1), None);
}

#[test]
fn pins_are_kept_or_refused() {
    let spec = spec(&[1000; 6], 1000, HeadMatrix::Own);
    let with = |pins: &[(usize, Range<usize>)]| {
        let workers = (0..3).map(|w| worker(w, 1 << 30, 1)).collect();
        solve(&PlanInput { pins: pins.iter().cloned().collect(), ..input(&spec, workers) })
    };
    let plan = with(&[(2, 0..3)]).unwrap();
    assert_eq!((plan.stages[0].worker, plan.stages[0].layers.clone()), (2, 0..3));
    let middle = with(&[(1, 2..4)]).unwrap();
    assert_eq!((middle.stages[1].worker, middle.stages.len()), (1, 3));
    for (pins, part) in [
        (vec![(0, 4..7)], "w0 is pinned to layers 4..7: the model has layers 0..6"),
        (vec![(0, 0..3), (1, 2..4)], "w1 is pinned to layers 2..4: another worker is pinned to 0..3"),
    ] {
        assert_eq!(with(&pins).unwrap_err().to_string(), part);
    }
}

#[test]
fn many_large_machines_are_planned_for_exactly() {
    // A dense model of 405 billion parameters in 4.5 bits, over eight mixed machines that it just fits.
    let spec = spec(&[1_790_000_000; 126], 1_200_000_000, HeadMatrix::Own);
    let machines =
        [(64, 100.0), (32, 60.0), (128, 400.0), (16, 50.0), (64, 273.0), (24, 90.0), (48, 200.0), (16, 68.0)];
    let workers: Vec<_> = machines
        .iter()
        .enumerate()
        .map(|(w, (gigabytes, speed))| fast(worker(w, gigabytes * 1_000_000_000, 8), *speed))
        .collect();
    let mut input = input(&spec, workers);
    (0..8).for_each(|w| input.links.set_own(w, Link { rtt_ms: 0.3 + w as f64, bytes_per_s: Some(100e6) }));
    let plan = solve(&input).unwrap();
    let layers: Vec<_> = plan.stages.iter().flat_map(|stage| stage.layers.clone()).collect();
    assert_eq!((layers, plan.gap_percent), ((0..126).collect(), 0.0));
    assert_eq!(plan.stages.iter().filter(|stage| stage.worker == 2).count(), 1, "the fastest has a part");
}

#[test]
fn a_search_that_is_cut_short_says_how_far_it_may_be_from_the_best() {
    // No two alike, and each with room for some seven of the layers: every one of them is scarce.
    let spec = spec(&[100_000_000; 100], 100_000_000, HeadMatrix::Own);
    let machine =
        |w: usize| fast(worker(w, 1_000_000_000 + 1_000_000 * w as u64, 4), 50.0 + 7.0 * ((w * 7) % 20) as f64);
    let mut input = input(&spec, (0..20).map(machine).collect());
    (0..20).for_each(|w| input.links.set_own(w, Link { rtt_ms: 0.1 * w as f64, bytes_per_s: None }));
    let gap = |goal| solve(&PlanInput { goal, ..input.clone() }).unwrap().gap_percent;
    for goal in [Goal::Latency, Goal::Balanced] {
        assert!(gap(goal) > 0.0 && gap(goal) < 30.0, "{goal:?}: {}", gap(goal));
    }
    // Here what the workers have room for is bound enough.
    assert_eq!(gap(Goal::Throughput), 0.0);
}

#[test]
fn equal_workers_share_evenly_and_the_head_counts() {
    let spec = spec(&[1000; 30], 8000, HeadMatrix::Tied);
    let plan = solve(&input(&spec, (0..4).map(|w| worker(w, 1 << 30, 2)).collect())).unwrap();
    let shares: Vec<_> = plan.stages.iter().map(|s| s.layers.len()).collect();
    assert_eq!(shares, [8, 8, 8, 6], "the tied table is as much work as two layers");
    assert_eq!(plan.stages[0].weight_bytes, 8000 + 8000, "and held by the first stage as well");
    // Two pages of eight layers; a value of 8 elements fills 16.
    assert_eq!(plan.stages[0].kv_bytes, 2 * (8 * 2 * 64 * (8 + 16) + 64));
    assert!(plan.stages.iter().all(|s| s.memory_bytes + s.headroom_bytes == 1 << 30) && plan.notes.is_empty());
}

#[test]
fn the_cut_is_good_for_the_workload() {
    let spec = spec(&[1000; 30], 6000, HeadMatrix::Tied);
    let shares = |workload| {
        let input = PlanInput { workload, ..input(&spec, (0..4).map(|w| worker(w, 1 << 30, 1)).collect()) };
        solve(&input).unwrap().stages.iter().map(|s| s.layers.len()).collect::<Vec<_>>()
    };
    assert_eq!(shares(Workload::Mixed), [8, 8, 8, 6]);
    assert_eq!(shares(Workload::Prompts), [7, 7, 8, 8]);
    assert_eq!(shares(Workload::Replies), [9, 9, 9, 3]);
}

#[test]
fn workers_without_layers_are_named() {
    let spec = spec(&[1000, 1000], 0, HeadMatrix::Tied);
    let plan = solve(&input(&spec, (0..4).map(|w| worker(w, 1 << 30, 1)).collect())).unwrap();
    assert_eq!(plan.stages.len(), 2);
    assert_eq!(plan.notes.len(), 1);
    assert!(plan.notes[0].starts_with("the model has only 2 layers: nothing to do for w"), "{:?}", plan.notes);
    let small = solve(&input(&spec, vec![worker(0, 1 << 20, 1), worker(1, 1 << 30, 1)])).unwrap();
    assert_eq!((small.stages.len(), small.stages[0].worker), (1, 1));
    assert_eq!(small.notes, ["not every worker has room for a layer: nothing to do for w0"]);
}

#[test]
fn explicit_cuts_are_taken_or_refused() {
    let spec = spec(&[1000; 6], 1000, HeadMatrix::Own);
    let with = |cut: &[usize], memory: u64| {
        let workers = (0..3).map(|w| worker(w, memory, 1)).collect();
        solve(&PlanInput { cut: Some(cut.to_vec()), ..input(&spec, workers) })
    };
    let plan = with(&[1, 5], 1 << 30).unwrap();
    assert_eq!(plan.stages.iter().map(|s| s.layers.clone()).collect::<Vec<_>>(), [0..1, 1..5, 5..6]);
    assert_eq!(with(&[2], 1 << 30).unwrap().notes, ["the cut has 2 stages: nothing to do for w2"]);
    for cut in [&[0][..], &[6], &[3, 3], &[4, 2], &[7]] {
        assert_eq!(with(cut, 1 << 30).unwrap_err(), PlanError::BadCut { cut: cut.to_vec(), layers: 6 });
    }
    assert_eq!(with(&[1, 2, 3], 1 << 30).unwrap_err(), PlanError::CutNeedsWorkers { stages: 4, workers: 3 });
    let error = with(&[1, 5], 1 << 20).unwrap_err().to_string();
    assert!(
        error.starts_with("the cut gives w0 layers 0..1, which need 22.8") && error.ends_with("it has 1.05 MB"),
        "{error}"
    );
}

#[test]
fn a_shortfall_reads_well() {
    let spec = spec(&[50_000_000; 4], 1000, HeadMatrix::Tied);
    let workers = vec![worker(0, 140_000_000, 1), worker(1, 90_000_000, 1)];
    let error = solve(&input(&spec, workers)).unwrap_err();
    assert_eq!(error.to_string(), "toy with 100 KV positions needs 246 MB on 2 workers, which offer 230 MB");
    assert_eq!(error.advice().unwrap(), "add a worker with at least 73.0 MB");
    assert_eq!(solve(&input(&spec, Vec::new())).unwrap_err(), PlanError::NoWorkers);
}
