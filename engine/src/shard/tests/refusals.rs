//! What a shard refuses, and that a refused step changes nothing.

use qmesh_models::spec::{
    AttentionSpec, BlockIndexerSpec, Ffn, HeadMatrix, IndexerSpec, KvSource, LatentQueries, LatentSpec, LayerIndex,
    LayerSpec, Mixer, NormPlacement, Positions, Temperature, TensorRole, Window,
};

use super::*;

fn tiny() -> (ModelSpec, File) {
    let grouped = |spec: &ModelSpec| spec.layers.iter().all(|layer| layer.attention().is_some());
    kind(|spec| spec.head.matrix == HeadMatrix::Own && spec.layers.len() > 2 && grouped(spec))
}

fn load_error(spec: &ModelSpec, file: &File, layers: Range<usize>) -> EngineError {
    Shard::load_on(Simd::available()[0], spec, layers, 64, 1, file, &mut |_| {}).unwrap_err()
}

fn step(session: u64, position: usize, ids: &[u32]) -> Step {
    let sequences = vec![SequenceRows { session, position, rows: ids.len(), wants: Wants::Last }];
    Step { sequences, ids: ids.to_vec(), ..Step::default() }
}

#[test]
fn a_refused_step_leaves_the_session_as_it_was() {
    let model = tiny();
    let mut pipeline = Pipeline::new(&model, &[], 1, Simd::available()[0]);
    pipeline.open(1, &with_digest());
    let expected = pipeline.feed(1, 0, &[5, 6, 7, 8], Wants::All)[3].digest;
    let shard = &mut pipeline.0[0];
    let vocab = model.0.vocab;
    let gap = EngineError::Gap { session: 1, need: 4 };
    assert_eq!(shard.step(&step(1, 5, &[1])).unwrap_err(), gap);
    assert_eq!(shard.step(&step(9, 0, &[1])).unwrap_err(), EngineError::UnknownSession { session: 9 });
    let outside = EngineError::OutsideVocabulary { session: 1, id: vocab as u32, vocab };
    assert_eq!(shard.step(&step(1, 1, &[1, vocab as u32])).unwrap_err(), outside);
    let beyond = EngineError::BeyondSession { session: 1, position: 513, max_positions: 512 };
    assert_eq!(shard.step(&step(1, 4, &[0; 510])).unwrap_err(), beyond);
    let mut twice = step(1, 0, &[1]);
    twice.sequences.push(twice.sequences[0]);
    let few = Step { ids: vec![1], ..step(1, 0, &[1, 2]) };
    let hidden = Step { hidden: Some(vec![0.0; model.0.hidden]), ..step(1, 0, &[1]) };
    for wrong in [twice, few, hidden, step(1, 0, &[]), Step::default()] {
        assert!(matches!(shard.step(&wrong), Err(EngineError::Step { .. })), "{wrong:?}");
    }
    assert_eq!(pipeline.feed(1, 3, &[8], Wants::Last)[0].digest, expected);
}

#[test]
fn a_later_stage_wants_an_activation_that_fits_and_is_finite() {
    let model = tiny();
    let mut pipeline = Pipeline::new(&model, &[1], 1, Simd::available()[0]);
    pipeline.open(1, &with_digest());
    pipeline.feed(1, 0, &[5, 6], Wants::Last);
    let last = &mut pipeline.0[1];
    for hidden in [None, Some(vec![0.0; 3])] {
        let wrong = Step { hidden, ..step(1, 2, &[1]) };
        assert!(matches!(last.step(&wrong), Err(EngineError::Step { .. })));
    }
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut hidden = vec![0.5; model.0.hidden];
        hidden[7] = bad;
        let broken = Step { hidden: Some(hidden), ..step(1, 1, &[1]) };
        let expected = EngineError::NonFinite { session: 1, position: 1 };
        assert_eq!(last.step(&broken), Ok(StepOutput::Sampled(vec![Err(expected)].into())), "{bad}");
        let mut summed = broken;
        summed.sequences[0].wants = Wants::Sum;
        let expected =
            Samples { sums: vec![Err(EngineError::NonFinite { session: 1, position: 1 })], ..Samples::default() };
        assert_eq!(last.step(&summed), Ok(StepOutput::Sampled(expected)), "{bad}");
        assert_eq!(
            last.step(&Step { hidden: Some(vec![0.5; model.0.hidden]), ..step(1, 2, &[1]) }),
            Err(EngineError::Gap { session: 1, need: 1 })
        );
    }
}

#[test]
fn sessions_share_the_budget() {
    let model = tiny();
    let mut shard = Pipeline::new(&model, &[], 1, Simd::available()[0]).0.remove(0);
    let never = EngineError::KvFull { session: 1, needed: 4097, free: 4096 };
    assert_eq!(shard.open(1, 4097, SamplingParameters::default()), Err(never));
    shard.open(1, 4000, SamplingParameters::default()).unwrap();
    assert_eq!(shard.kv_positions_used(), 0, "what it may come to hold is not held yet");
    assert_eq!(shard.open(1, 1, SamplingParameters::default()), Err(EngineError::SessionOpen { session: 1 }));
    shard.step(&step(1, 0, &[1; 3969])).unwrap();
    assert_eq!(shard.kv_positions_used(), 4032);
    shard.open(3, 200, SamplingParameters::default()).unwrap();
    let full = EngineError::KvFull { session: 3, needed: 128, free: 64 };
    assert_eq!(shard.step(&step(3, 0, &[1; 65])), Err(full));
    shard.step(&step(3, 0, &[1; 64])).unwrap();
    let mut both = step(1, 3969, &[1; 31]);
    both.sequences.push(SequenceRows { session: 3, position: 64, rows: 1, wants: Wants::None });
    both.ids.push(1);
    assert_eq!(shard.step(&both), Err(EngineError::KvFull { session: 3, needed: 64, free: 0 }));
    shard.close(1).unwrap();
    assert_eq!(shard.close(1), Err(EngineError::UnknownSession { session: 1 }));
    let hot = SamplingParameters { temperature: -1.0, ..SamplingParameters::default() };
    assert!(matches!(shard.open(2, 1, hot), Err(EngineError::Sampling { name: "temperature", .. })));
    assert!(shard.open(2, usize::MAX, SamplingParameters::default()).is_err());
    assert_eq!(shard.kv_positions_used(), 64);
}

#[test]
fn specs_that_do_not_add_up_are_refused_by_name() {
    let (spec, file) = tiny();
    let count = spec.layers.len();
    assert_eq!(load_error(&spec, &file, 1..9), EngineError::Layers { range: 1..9, count });
    assert!(matches!(load_error(&spec, &file, 1..1), EngineError::Layers { .. }));
    let changed = |change: &dyn Fn(&mut ModelSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        load_error(&spec, &file, 0..count).to_string()
    };
    let index = |role| spec.tensors.iter().position(|t| t.role == role).unwrap();
    let output = index(TensorRole::Output);
    for (message, expected) in [
        (changed(&|s| attention(s, 0).kv_heads = 0), "kv_heads = 0"),
        (changed(&|s| attention(s, 0).heads = 3), "3 heads"),
        (changed(&|s| attention(s, 2).rope.as_mut().unwrap().dims = 7), "rope.dims 7"),
        (changed(&|s| attention(s, 1).window = Window::Sliding(0)), "window of 0"),
        (changed(&|s| attention(s, 1).window = Window::Chunked(0)), "chunks of 0"),
        (changed(&|s| attention(s, 1).temperature = Some(NO_STEPS)), "attention.temperature.length"),
        (changed(&|s| (s.layers[1].mixer, s.layers[1].ffn) = (Mixer::None, Ffn::None)), "without any half"),
        (changed(&|s| (s.layers[1].ffn, s.layers[1].norms) = (Ffn::None, NormPlacement::Beside)), "side by side"),
        (changed(&|s| s.layers[1].ffn = Ffn::None), "left over"),
        (changed(&|s| s.hidden = usize::MAX), "hidden = "),
        (changed(&|s| s.tensors[output].bytes = u64::MAX), "bytes cannot be"),
        (changed(&|s| s.tensors[output].rows = usize::MAX), "bytes cannot be"),
        (changed(&|s| s.vocab -= 1), "instead of"),
        (changed(&|s| drop(s.tensors.remove(output))), "Output is missing"),
        (changed(&|s| s.head.matrix = HeadMatrix::Tied), "left over"),
        (changed(&|s| s.tensors.push(s.tensors[output].clone())), "listed twice"),
    ] {
        assert!(message.contains(expected), "{message} does not say {expected}");
    }
}

#[test]
fn latents_that_do_not_add_up_are_refused_by_name() {
    let of_heads = |spec: &ModelSpec| matches!(&spec.layers[0].mixer, Mixer::Latent(latent) if latent.heads > 1);
    let (spec, file) = kind(of_heads);
    let changed = |change: &dyn Fn(&mut LatentSpec)| {
        let mut spec = spec.clone();
        let Mixer::Latent(latent) = &mut spec.layers[0].mixer else { panic!("it has latents") };
        change(latent);
        load_error(&spec, &file, 0..1).to_string()
    };
    for (message, expected) in [
        (changed(&|latent| latent.heads = 0), "latent.heads = 0"),
        (changed(&|latent| latent.plain_dim = usize::MAX), "plain_dim = "),
        (changed(&|latent| latent.latent_dim += 16), "instead of"),
        (changed(&|latent| latent.value_dim /= 2), "instead of"),
        (changed(&|latent| latent.rope.as_mut().unwrap().dims = 7), "rope.dims 7"),
        (changed(&|latent| latent.scale = f32::NAN), "latent.scale"),
        (
            changed(&|latent| latent.temperature = Some(Temperature { scale: 0.1, offset: 0, length: 0 })),
            "temperature.length",
        ),
    ] {
        assert!(message.contains(expected), "{message} does not say {expected}");
    }
}

#[test]
fn indexers_that_do_not_add_up_are_refused_by_name() {
    let (spec, file) = kind(|spec| !spec.can_begin(1));
    assert!(
        load_error(&spec, &file, 1..2)
            .to_string()
            .contains("begins with layer 1, which, or one behind it, needs an earlier one")
    );
    let changed = |change: &dyn Fn(&mut LatentSpec, &mut IndexerSpec)| {
        let mut spec = spec.clone();
        let Mixer::Latent(latent) = &mut spec.layers[0].mixer else { panic!("it has latents") };
        let mut indexer = latent.indexer().unwrap().clone();
        change(latent, &mut indexer);
        latent.positions = Positions::Chosen(indexer);
        load_error(&spec, &file, 0..1).to_string()
    };
    for (message, expected) in [
        (changed(&|_, indexer| indexer.heads = 0), "indexer.heads = 0"),
        (changed(&|_, indexer| indexer.used = 0), "indexer.used = 0"),
        (changed(&|_, indexer| indexer.eps = 0.0), "indexer.eps"),
        (changed(&|_, indexer| indexer.rope.dims = 66), "rope.dims 66"),
        (changed(&|_, indexer| indexer.head_dim = 80), "instead of"),
        (changed(&|latent, _| latent.queries = LatentQueries::Direct), "have no latent to be made of"),
    ] {
        assert!(message.contains(expected), "{message} does not say {expected}");
    }
}

#[test]
fn keys_of_other_layers_and_blocks_that_do_not_add_up_are_refused_by_name() {
    let shares = |spec: &ModelSpec| spec.layers.iter().rposition(|layer| source(layer).is_some());
    let (spec, file) = kind(|spec| shares(spec).is_some());
    let (sharing, count) = (shares(&spec).unwrap(), spec.layers.len());
    let own = source(&spec.layers[sharing]).unwrap();
    let begins = load_error(&spec, &file, own + 1..count).to_string();
    assert!(begins.contains(&format!("begins with layer {}, which, or one behind it", own + 1)), "{begins}");
    let changed = |change: &dyn Fn(&mut AttentionSpec)| {
        let mut spec = spec.clone();
        change(attention(&mut spec, sharing));
        load_error(&spec, &file, 0..count).to_string()
    };
    let fits_not = "which do not fit it";
    for (message, expected) in [
        (changed(&|a| a.source = KvSource::Layer(LayerIndex(sharing))), fits_not),
        (changed(&|a| a.source = KvSource::Layer(LayerIndex(count + 1))), fits_not),
        (changed(&|a| a.source = KvSource::Layer(LayerIndex(own + 1))), fits_not),
        (changed(&|a| a.kv_heads = a.heads), fits_not),
    ] {
        assert!(message.contains(expected), "{message} does not say {expected}");
    }
    let (spec, file) = kind(|spec| spec.layers.iter().any(|layer| blocks(layer).is_some()));
    let choosing = spec.layers.iter().position(|layer| blocks(layer).is_some()).unwrap();
    let changed = |change: &dyn Fn(&mut AttentionSpec, &mut BlockIndexerSpec)| {
        let mut spec = spec.clone();
        let attention = attention(&mut spec, choosing);
        let mut blocks = attention.blocks.take().unwrap();
        change(attention, &mut blocks);
        attention.blocks = Some(blocks);
        load_error(&spec, &file, 0..spec.layers.len()).to_string()
    };
    for (message, expected) in [
        (changed(&|_, blocks| blocks.block = 0), "blocks.block = 0"),
        (changed(&|_, blocks| blocks.used = 0), "blocks.used = 0"),
        (changed(&|_, blocks| blocks.local = 0), "blocks.local = 0"),
        (changed(&|_, blocks| blocks.local = blocks.used + 1), "blocks.local = "),
        (changed(&|_, blocks| blocks.head_dim *= 2), "instead of"),
        (changed(&|attention, _| attention.window = Window::Sliding(8)), "within a window"),
    ] {
        assert!(message.contains(expected), "{message} does not say {expected}");
    }
}

/// Which earlier layer's keys and values a layer meets, if not its own.
fn source(layer: &LayerSpec) -> Option<usize> {
    match layer.attention()?.source {
        KvSource::Own => None,
        KvSource::Layer(source) => Some(source.0),
    }
}

fn blocks(layer: &LayerSpec) -> Option<&BlockIndexerSpec> {
    layer.attention()?.blocks.as_ref()
}

const NO_STEPS: Temperature = Temperature { scale: 0.1, offset: 0, length: 0 };

fn attention(spec: &mut ModelSpec, layer: usize) -> &mut AttentionSpec {
    spec.layers[layer].attention_mut().unwrap()
}
