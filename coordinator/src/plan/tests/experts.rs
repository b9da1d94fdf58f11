//! Mixtures of experts: what a token reads of them, and what of them stays on disk.

use qmesh_models::spec::{ExpertForm, ExpertsSpec, Routing, Scoring, Weighting};

use super::*;

/// Six layers of which the last three have eight experts each, of which a token uses one; every layer has so many bytes.
fn mixture(layer_bytes: u64) -> ModelSpec {
    let mut spec = spec(&[layer_bytes; 6], 0, HeadMatrix::Tied);
    let experts = ExpertsSpec {
        count: 8,
        used: 1,
        inner: 16,
        form: ExpertForm::Gated,
        latent: None,
        activation: Activation::Silu,
        bias: Bias::None,
        routing: Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored),
        shared: None,
    };
    for layer in 3..6 {
        spec.layers[layer].ffn = Ffn::Experts(experts.clone());
        let tensor =
            spec.tensors.iter_mut().find(|t| matches!(t.role, TensorRole::Layer(LayerIndex(i), _) if i == layer));
        tensor.unwrap().role = TensorRole::Layer(LayerIndex(layer), LayerTensor::ExpertUps);
    }
    spec
}

/// One worker that lacks room for so many bytes of the model, and reads its disk at so many gigabytes a second.
fn short(spec: &ModelSpec, lacking: u64, disk_gigabytes_per_s: f64) -> PlanInput<'_> {
    let all = whole(&(0..spec.layers.len()));
    let needed = Costs::new(&input(spec, Vec::new())).footprint(&all, 1).total_bytes();
    let mut one = fast(worker(0, needed - lacking, 1), 10.0);
    one.speed = one.speed.map(|speed| speed.with_disk(Some(disk_gigabytes_per_s * 1e9)));
    PlanInput { experts: Experts::OnDisk, ..input(spec, vec![one]) }
}

#[test]
fn experts_that_a_token_does_not_pass_weigh_in_memory_and_not_in_work() {
    // As many bytes in the last three layers, an eighth of the work.
    let spec = mixture(8000);
    let plan = solve(&input(&spec, vec![worker(0, 1 << 30, 1), worker(1, 1 << 30, 1)])).unwrap();
    let layers: Vec<_> = plan.stages.iter().map(|stage| stage.layers.clone()).collect();
    assert_eq!(layers, [0..2, 2..6], "16000 bytes of work against 11000");
    assert_eq!(plan.stages[1].weight_bytes, 4 * 8000 + 64, "all experts are held");
}

#[test]
fn experts_stay_on_disk_only_where_that_is_allowed_and_needed() {
    // Experts of 1 MB, 24 of them.
    let spec = mixture(8_000_000);
    let on_disk = short(&spec, 10_000_000, 1.0);
    let refused = solve(&PlanInput { experts: Experts::InMemory, ..on_disk.clone() }).unwrap_err();
    assert!(refused.advice().unwrap().contains("--experts-on-disk"), "{:?}", refused.advice());

    let plan = solve(&on_disk).unwrap();
    let stage = &plan.stages[0];
    // Four of the eight in each of three layers make 12 MB of room.
    assert_eq!(stage.experts_in_memory.map(NonZeroUsize::get), Some(4));
    assert!(stage.memory_bytes <= on_disk.workers[0].memory_bytes && stage.headroom_bytes < 3_100_000, "{stage:?}");
    assert_eq!(stage.disk_bytes, 12_000_000);
    let note = "50 % of the experts stay on disk and are read when they are needed (in memory: 4 of 8 a layer on w0); \
                with 12.0 MB more memory none would";
    assert_eq!(plan.notes, [note]);

    let enough = short(&spec, 0, 1.0);
    let plan = solve(&enough).unwrap();
    assert_eq!((plan.stages[0].experts_in_memory, plan.stages[0].disk_bytes, plan.notes.len()), (None, 0, 0));
}

#[test]
fn what_has_no_room_for_the_experts_of_one_row_does_not_fit() {
    let spec = mixture(8_000_000);
    assert_eq!(solve(&short(&spec, 20_900_000, 1.0)).unwrap().stages[0].experts_in_memory, NonZeroUsize::new(1));
    let PlanError::DoesNotFit(shortfall) = solve(&short(&spec, 22_000_000, 1.0)).unwrap_err() else {
        panic!("one of eight experts a layer makes 3 MB at least")
    };
    assert!(!shortfall.fits_on_disk, "it was allowed already");
    // Where layers have no experts, nothing of them can stay on disk.
    let dense = super::spec(&[8_000_000; 6], 0, HeadMatrix::Tied);
    assert!(solve(&short(&dense, 1_000_000, 1.0)).is_err());
}

#[test]
fn what_is_read_from_disk_takes_time() {
    let spec = mixture(8_000_000);
    let token_ms = |lacking: u64, disk: f64| {
        let input = short(&spec, lacking, disk);
        predict(&input, &solve(&input).unwrap(), 1).unwrap().stage_ms[0]
    };
    let in_memory = token_ms(0, 1.0);
    // Every other expert of three is missing: 1.5 MB at 1 GB/s, and once more at 10 GB/s when it is packed.
    let half = token_ms(10_000_000, 1.0);
    assert!((half - in_memory - 1.65).abs() < 0.01, "{in_memory} {half}");
    assert!(token_ms(10_000_000, 0.1) > 4.0 * half);
    assert!(token_ms(16_000_000, 1.0) > half);
    // A chunk of a prompt uses all of them.
    let input = short(&spec, 10_000_000, 1.0);
    let prediction = predict(&input, &solve(&input).unwrap(), 1).unwrap();
    assert!(prediction.ttft_ms(16) > prediction.ttft_ms(1) + 10.0, "{prediction:?}");
}

#[test]
fn a_stage_that_needs_no_disk_is_preferred() {
    let spec = mixture(8_000_000);
    let mut input = short(&spec, 10_000_000, 0.05);
    let second = input.workers[0].clone();
    input.workers.push(Capacity { name: "w1".into(), ..second });
    let plan = solve(&input).unwrap();
    assert_eq!(plan.stages.len(), 2);
    assert!(plan.stages.iter().all(|stage| stage.experts_in_memory.is_none()), "{plan:?}");
}
