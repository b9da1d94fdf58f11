//! Drafts of a tiny model, against what it says in one go.

use std::{num::NonZeroUsize, path::Path};

use qmesh_models::{spec::TensorSpec, weights::ModelFile};

use super::*;
use crate::backend::{Backend as _, ExpertsHeld, HeldTensors, ShardRequest, cpu::CpuBackend};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");
const CONTEXT: usize = 4 * PAGE_POSITIONS;

fn model(kv_positions: usize) -> DraftingModel {
    let file = ModelFile::open(Path::new(TINY)).unwrap();
    let read = |tensor: &TensorSpec, into: &mut [u8]| {
        let read = file.read_range(tensor.part, tensor.offset, into);
        read.map_err(|error| EngineError::Read { tensor: tensor.name.clone(), reason: error.to_string() })
    };
    let request = ShardRequest {
        spec: file.spec(),
        layers: 0..file.spec().layers.len(),
        kv_positions,
        held: &HeldTensors::new(),
        read: &read,
        experts: ExpertsHeld::All,
    };
    let shard = CpuBackend::new(NonZeroUsize::MIN).load(&request, &mut |_| {}).unwrap();
    DraftingModel::new(shard, DraftingRoom { vocab: file.spec().vocab, context: CONTEXT, kv_positions })
}

fn open(model: &mut DraftingModel, session: u64, temperature: f32) {
    let sampling = Sampling { temperature, seed: 5, ..Sampling::default() };
    assert_eq!(model.order(DraftOrder::Open { session: SessionId(session), sampling }), None);
}

fn order(model: &mut DraftingModel, session: u64, from: usize, ids: &[u32], most: u32) -> Option<DraftAnswer> {
    model.order(DraftOrder::Draft { session: SessionId(session), from: from as u32, ids: ids.to_vec(), most })
}

/// The drafts of all sessions that wait for some.
fn drafts(model: &mut DraftingModel) -> BTreeMap<u64, Vec<u32>> {
    let mut drafts = BTreeMap::new();
    while model.is_busy() {
        for answer in model.step() {
            let DraftAnswer::Drafted { session, ids, .. } = answer else { panic!("{answer:?}") };
            assert!(drafts.insert(session.0, ids).is_none());
        }
    }
    drafts
}

fn prompt(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|i| (i * 7 + seed * 13) % 60).collect()
}

#[test]
fn what_was_taken_is_gone_on_from_and_what_was_not_is_written_over() {
    for temperature in [0.0, 0.9] {
        let whole = {
            let mut model = model(CONTEXT);
            open(&mut model, 1, temperature);
            order(&mut model, 1, 0, &prompt(1, 150), 20);
            drafts(&mut model).remove(&1).unwrap()
        };
        let mut model = model(CONTEXT);
        open(&mut model, 1, temperature);
        order(&mut model, 1, 0, &prompt(1, 150), 6);
        assert_eq!(drafts(&mut model)[&1], whole[..6]);
        // All were right, and one more came.
        order(&mut model, 1, 150, &whole[..7], 5);
        assert_eq!(drafts(&mut model)[&1], whole[7..12]);
        // Of these the mesh says something else in the second place.
        let other = (whole[8] + 1) % 60;
        order(&mut model, 1, 157, &[whole[7], other], 4);
        let after = drafts(&mut model).remove(&1).unwrap();
        let mut anew = self::model(CONTEXT);
        open(&mut anew, 3, temperature);
        order(&mut anew, 3, 0, &[&prompt(1, 150)[..], &whole[..8], &[other]].concat(), 4);
        assert_eq!(drafts(&mut anew)[&3], after, "temperature {temperature}");
    }
}

#[test]
fn sessions_that_share_steps_and_forget_each_other_draft_what_they_do_alone() {
    let alone: Vec<_> = (0..4)
        .map(|seed| {
            let mut model = model(CONTEXT);
            open(&mut model, 1, 0.5);
            order(&mut model, 1, 0, &prompt(seed, 40 + seed * 20), 8);
            drafts(&mut model).remove(&1).unwrap()
        })
        .collect();
    let mut roomy = model(8 * PAGE_POSITIONS);
    for seed in 0..4 {
        open(&mut roomy, u64::from(seed), 0.5);
        order(&mut roomy, u64::from(seed), 0, &prompt(seed, 40 + seed * 20), 8);
    }
    assert_eq!(drafts(&mut roomy).into_values().collect::<Vec<_>>(), alone);
    // Two pages, so that whoever is asked makes the others go.
    let mut narrow = model(2 * PAGE_POSITIONS);
    for seed in (0..4).chain((0..4).rev()) {
        let (session, told) =
            (u64::from(seed), narrow.sessions.get(&SessionId(seed.into())).map_or(0, |s| s.told.len()));
        if told == 0 {
            open(&mut narrow, session, 0.5);
        }
        order(&mut narrow, session, told, &prompt(seed, 40 + seed * 20)[told..], 8);
        assert_eq!(drafts(&mut narrow)[&session], alone[seed as usize]);
        assert!(narrow.shard.kv_positions_used() <= 2 * PAGE_POSITIONS);
    }
}

#[test]
fn what_cannot_be_drafted_is_said_and_leaves_the_others() {
    let mut model = model(CONTEXT);
    let failed = |answer: Option<DraftAnswer>| matches!(answer, Some(DraftAnswer::Failed { .. }));
    assert!(failed(order(&mut model, 1, 0, &[1], 3)), "it is not open");
    open(&mut model, 1, 0.0);
    assert!(failed(order(&mut model, 1, 4, &[1], 3)), "a gap");
    assert!(failed(order(&mut model, 1, 0, &[1 << 30], 3)), "no such id");
    order(&mut model, 1, 0, &prompt(1, CONTEXT as u32 - 2), 9);
    assert_eq!(drafts(&mut model)[&1].len(), 3, "as many as there is room for");
    // Room for one of them only, and both wait.
    open(&mut model, 2, 0.0);
    order(&mut model, 2, 0, &prompt(2, 20), 2);
    order(&mut model, 1, CONTEXT - 2, &[], 2);
    assert_eq!(drafts(&mut model).into_values().map(|drafts| drafts.len()).collect::<Vec<_>>(), [2, 0]);
    order(&mut model, 2, 20, &[], 2);
    assert_eq!(drafts(&mut model)[&2].len(), 2);
    assert_eq!(model.order(DraftOrder::Close { session: SessionId(1) }), None);
    model.order(DraftOrder::Close { session: SessionId(2) });
    assert_eq!(model.shard.kv_positions_used(), 0);
}

#[test]
fn orders_come_over_a_pipe_until_it_ends() {
    let session = SessionId(4);
    let ids = prompt(1, 30);
    let orders = [
        DraftOrder::Open { session, sampling: Sampling::default() },
        DraftOrder::Draft { session, from: 0, ids: ids[..20].to_vec(), most: 0 },
        DraftOrder::Draft { session, from: 20, ids: ids[20..].to_vec(), most: 4 },
    ];
    let bytes: Vec<u8> = orders.iter().flat_map(|order| order.to_pipe().unwrap()).collect();
    let (reader, mut writer) = io::pipe().unwrap();
    let (answered, answers) = io::pipe().unwrap();
    let drafting = thread::spawn(move || draft(&mut model(CONTEXT), reader, answers));
    writer.write_all(&bytes).unwrap();
    let mut answered = answered;
    let mut next = || {
        let mut length = [0; 4];
        answered.read_exact(&mut length).unwrap();
        let mut body = vec![0; body_bytes(length).unwrap()];
        answered.read_exact(&mut body).unwrap();
        DraftAnswer::from_body(&body).unwrap()
    };
    assert_eq!(next(), DraftAnswer::Ready);
    let DraftAnswer::Drafted { at, ids: drafted, .. } = next() else { panic!("no drafts") };
    assert_eq!((at, drafted.len()), (30, 4));
    drop(writer);
    drafting.join().unwrap().unwrap();
}
