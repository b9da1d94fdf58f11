//! A small model that drafts for a large one: whether it can, and what it takes.
//!
//! It runs on the coordinator's machine, in a `shard-worker` of its own. What it says is only a guess that the large model
//! verifies, so that it decides no token, but for how soon it comes.

use std::{path::PathBuf, sync::Arc};

use qmesh_models::{
    footprint::{DRAFT_READ_ROWS, Footprints, PAGE_POSITIONS, ShardDemand, sessions},
    spec::ModelSpec,
    tokenizer::Tokenizer,
};

use crate::model::Model;

/// A model that drafts.
#[derive(Clone, Debug)]
pub struct Drafter {
    /// The model.
    pub model: Arc<Model>,
    /// Threads that it computes with.
    pub threads: usize,
    /// Tokens that it drafts at a time at most.
    pub most: usize,
}

/// How much text a model that drafts can hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DraftRoom {
    /// Positions of one session.
    pub context: usize,
    /// Positions of all sessions together.
    pub kv_positions: usize,
}

/// Why a model cannot draft for another one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CannotDraft {
    /// Ids do not mean the same to both.
    #[error("{} cannot draft for {}: {difference}", draft.display(), model.display())]
    OtherVocabulary {
        /// The small model's file.
        draft: PathBuf,
        /// The large one's.
        model: PathBuf,
        /// What is different.
        difference: Difference,
    },
    /// Layers with a state, which does not go back over what was drafted.
    #[error("{} cannot draft: its layers have a state, which cannot take drafted tokens back", draft.display())]
    HasStates {
        /// The file.
        draft: PathBuf,
    },
}

/// What one vocabulary has and another one has not.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Difference {
    /// The first id that means something else.
    #[error("id {id} is {theirs} in the latter, and {ours} in the former")]
    Id {
        /// Which.
        id: u32,
        /// What it is to the model that would draft.
        ours: String,
        /// What it is to the other.
        theirs: String,
    },
    /// A token that has a part to play.
    #[error("{role} is {theirs} in the latter, and {ours} in the former")]
    Special {
        /// Its part.
        role: &'static str,
        /// Which token it is to the model that would draft.
        ours: String,
        /// Which it is to the other.
        theirs: String,
    },
    /// Only one of the files has a vocabulary, or they have none and not as many ids.
    #[error("there is a vocabulary in one of the files only, or one of another size")]
    Missing,
}

impl Drafter {
    /// `draft` drafts for `model`.
    ///
    /// # Errors
    /// Their vocabularies differ, or it cannot go back.
    pub fn new(draft: Model, model: &Model, threads: usize, most: usize) -> Result<Self, CannotDraft> {
        if draft.spec.has_states() {
            return Err(CannotDraft::HasStates { draft: draft.path });
        }
        if let Some(difference) = difference(&draft, model) {
            return Err(CannotDraft::OtherVocabulary { draft: draft.path, model: model.path.clone(), difference });
        }
        Ok(Self { model: Arc::new(draft), threads, most })
    }

    /// What it can hold of the sessions of a mesh.
    pub fn room(&self, context: usize, kv_positions: usize) -> DraftRoom {
        DraftRoom::of(&self.model.spec, context, kv_positions)
    }

    /// Memory that its process takes at most.
    pub fn memory_bytes(&self, room: DraftRoom) -> u64 {
        room.memory_bytes(&self.model.spec, self.threads)
    }
}

impl DraftRoom {
    /// What a model can hold of the sessions of a mesh: as many of them, and as long as it was trained for.
    pub fn of(spec: &ModelSpec, context: usize, kv_positions: usize) -> Self {
        let sessions = sessions(kv_positions, context);
        let context = context.min(spec.context);
        Self { context, kv_positions: context.next_multiple_of(PAGE_POSITIONS).saturating_mul(sessions) }
    }

    /// Memory that the process of such a model takes at most.
    pub fn memory_bytes(self, spec: &ModelSpec, threads: usize) -> u64 {
        let Self { context, kv_positions } = self;
        let spec = ModelSpec { context, ..spec.clone() };
        let demand = ShardDemand {
            layers: 0..spec.layers.len(),
            kv_positions,
            context,
            chunk_rows: DRAFT_READ_ROWS,
            threads,
            experts_in_memory: None,
        };
        Footprints::new(&spec).shard(&demand).total_bytes()
    }
}

/// What keeps one model's ids from meaning the same to the other.
fn difference(draft: &Model, model: &Model) -> Option<Difference> {
    match (&draft.tokenizer, &model.tokenizer) {
        (Some(ours), Some(theirs)) => first_difference(ours, theirs),
        // Numbers are all that ids are then.
        (None, None) if draft.spec.vocab == model.spec.vocab => None,
        (None | Some(_), None) | (None, Some(_)) => Some(Difference::Missing),
    }
}

/// The first id that does not mean the same to both. One of them may have more ids, where no text has these: vocabularies are filled
/// up to a round number.
fn first_difference(ours: &Tokenizer, theirs: &Tokenizer) -> Option<Difference> {
    let ids = ours.vocab_len().max(theirs.vocab_len());
    let mut ids = 0..u32::try_from(ids).unwrap_or(u32::MAX);
    if let Some(id) = ids.find(|&id| !means_the_same(ours, theirs, id)) {
        return Some(Difference::Id { id, ours: described(ours, id), theirs: described(theirs, id) });
    }
    let specials = [
        ("the token that begins a text", ours.bos(), theirs.bos()),
        ("the token that ends a text", ours.eos(), theirs.eos()),
    ];
    let (role, ours, theirs) = specials.into_iter().find(|(_, ours, theirs)| ours != theirs)?;
    let [ours, theirs] = [ours, theirs].map(|id| id.map_or("none".to_owned(), |id| format!("id {id}")));
    Some(Difference::Special { role, ours, theirs })
}

fn means_the_same(ours: &Tokenizer, theirs: &Tokenizer, id: u32) -> bool {
    match (ours.text(id), theirs.text(id)) {
        (Some(a), Some(b)) => a == b && ours.is_control(id) == theirs.is_control(id),
        (Some(_), None) => ours.is_unused(id),
        (None, Some(_)) => theirs.is_unused(id),
        (None, None) => true,
    }
}

fn described(tokenizer: &Tokenizer, id: u32) -> String {
    match tokenizer.text(id) {
        Some(text) if tokenizer.is_control(id) => format!("the control token {text:?}"),
        Some(text) => format!("{text:?}"),
        None => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qmesh_models::tokenizer::{PretokenizerChoice, Vocabulary};

    use super::*;

    fn tiny(name: &str) -> Model {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny"));
        Model::open(&folder.join(format!("{name}.gguf"))).unwrap()
    }

    #[test]
    fn a_model_drafts_for_one_with_its_vocabulary() {
        let model = tiny("llama");
        let drafter = Drafter::new(tiny("llama"), &model, 2, 8).unwrap();
        let room = drafter.room(100, 400);
        assert_eq!((room.context, room.kv_positions), (100, 512));
        let long = drafter.room(usize::MAX / 2, usize::MAX / 2);
        assert_eq!(long.context, model.spec.context, "no longer than it was trained for");
        let weights: u64 = model.spec.tensors.iter().map(|tensor| tensor.bytes).sum();
        assert!(drafter.memory_bytes(room) > weights);
    }

    fn tokenizer(change: impl FnOnce(&mut Vocabulary)) -> Tokenizer {
        let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab"].map(str::to_owned);
        let mut vocabulary = Vocabulary {
            model: "llama".to_owned(),
            scores: vec![0.0; tokens.len()],
            tokens: tokens.to_vec(),
            token_types: vec![2, 3, 3, 1, 1, 1],
            bos: Some(1),
            eos: Some(2),
            unknown: Some(0),
            ..Vocabulary::default()
        };
        change(&mut vocabulary);
        Tokenizer::new(vocabulary, PretokenizerChoice::FromModel).unwrap()
    }

    #[test]
    fn the_first_id_that_means_something_else_is_found() {
        let model = tokenizer(|_| ());
        assert_eq!(first_difference(&tokenizer(|_| ()), &model), None);
        let other = tokenizer(|v| v.tokens[4] = "c".to_owned());
        let found = first_difference(&other, &model).unwrap();
        assert_eq!(found.to_string(), "id 4 is \"b\" in the latter, and \"c\" in the former");
        let control = first_difference(&tokenizer(|v| v.token_types[5] = 3), &model).unwrap();
        assert!(matches!(control, Difference::Id { id: 5, .. }), "{control}");
        let ends = first_difference(&tokenizer(|v| v.eos = Some(1)), &model).unwrap();
        assert!(matches!(ends, Difference::Special { .. }), "{ends}");
    }

    #[test]
    fn a_vocabulary_may_be_filled_up() {
        let longer = |kind: i32| {
            tokenizer(|v| {
                v.tokens.push("[PAD6]".to_owned());
                v.scores.push(0.0);
                v.token_types.push(kind);
            })
        };
        let model = tokenizer(|_| ());
        assert_eq!((first_difference(&longer(5), &model), first_difference(&model, &longer(5))), (None, None));
        assert!(matches!(first_difference(&longer(1), &model), Some(Difference::Id { id: 6, .. })));
    }

    #[test]
    fn both_files_are_named() {
        let other = Model { spec: ModelSpec { vocab: 5, ..tiny("llama").spec }, ..tiny("qwen2") };
        let text = Drafter::new(other, &tiny("llama"), 1, 8).unwrap_err().to_string();
        assert!(text.contains("qwen2.gguf") && text.contains("llama.gguf"), "{text}");
    }

    #[test]
    fn a_state_cannot_take_drafts_back() {
        let error = Drafter::new(tiny("qwen3next"), &tiny("qwen3next"), 1, 8).unwrap_err();
        assert!(matches!(error, CannotDraft::HasStates { .. }), "{error}");
    }
}
