//! Models that cannot be cut before every layer.

use qmesh_models::spec::{
    HeadMatrices, IndexerSpec, KvSource, LatentQueries, LatentSpec, Positions, Rope, RopePairing, RopeScaling,
};

use super::*;

/// Six layers, of which the second, the third and the sixth go by what an earlier one has chosen.
fn sharing() -> ModelSpec {
    let rope = Rope { pairing: RopePairing::Halves, dims: 2, base: 1e4, scaling: RopeScaling::None, magnitude: 1.0 };
    let indexer = IndexerSpec { heads: 1, head_dim: 2, used: 4, rope, eps: 1e-6 };
    let latent = |positions| LatentSpec {
        heads: 1,
        queries: LatentQueries::Latent(8),
        matrices: HeadMatrices::Apart,
        latent_dim: 8,
        plain_dim: 8,
        rope_dim: 2,
        value_dim: 8,
        scale: 1.0,
        temperature: None,
        rope: None,
        positions,
    };
    let mut spec = spec(&[1000; 6], 1000, HeadMatrix::Own);
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let goes_by_earlier = matches!(index, 1 | 2 | 5);
        let positions = if goes_by_earlier { Positions::AsBefore } else { Positions::Chosen(indexer.clone()) };
        layer.mixer = Mixer::Latent(latent(positions));
    }
    spec
}

#[test]
fn layers_are_not_cut_off_from_what_they_go_by() {
    let spec = sharing();
    assert_eq!(spec.cuts().collect::<Vec<_>>(), [3, 4]);
    for workers in 1..=6 {
        let plan = solve(&input(&spec, (0..workers).map(|w| worker(w, 1 << 30, 1)).collect())).unwrap();
        assert_eq!(plan.stages.len(), workers.min(3), "as many as there are places to cut");
        assert!(plan.stages.iter().all(|stage| spec.can_begin(stage.layers.start)), "{workers} workers");
    }
}

#[test]
fn layers_are_not_cut_off_from_keys_and_values_that_they_meet() {
    let mut spec = spec(&[1000; 6], 1000, HeadMatrix::Own);
    for layer in [4, 5] {
        spec.layers[layer].attention_mut().unwrap().source = KvSource::Layer(LayerIndex(2));
    }
    assert_eq!(spec.cuts().collect::<Vec<_>>(), [1, 2]);
    let plan = solve(&input(&spec, (0..6).map(|w| worker(w, 1 << 30, 1)).collect())).unwrap();
    assert_eq!(plan.stages.iter().map(|stage| stage.layers.start).collect::<Vec<_>>(), [0, 1, 2]);
    let cut = PlanInput { cut: Some(vec![3]), ..input(&spec, (0..2).map(|w| worker(w, 1 << 30, 1)).collect()) };
    assert_eq!(solve(&cut).unwrap_err(), PlanError::CutsOff { layer: 3 });
}

#[test]
fn cuts_and_pins_that_would_are_refused_by_the_layer() {
    let spec = sharing();
    let workers = || (0..3).map(|w| worker(w, 1 << 30, 1)).collect::<Vec<_>>();
    let with = |cut: &[usize]| solve(&PlanInput { cut: Some(cut.to_vec()), ..input(&spec, workers()) });
    assert_eq!(with(&[3, 4]).unwrap().stages.len(), 3);
    assert_eq!(with(&[3, 5]).unwrap_err(), PlanError::CutsOff { layer: 5 });
    for pinned in [1..4, 0..2] {
        let pins = BTreeMap::from([(0, pinned)]);
        let error = solve(&PlanInput { pins, ..input(&spec, workers()) }).unwrap_err().to_string();
        assert!(error.contains("need what an earlier one has made"), "{error}");
    }
}
