//! A `LoadShard`, parsed: what this worker shall hold, checked so that nothing after it need doubt a number.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    num::NonZeroUsize,
    ops::Range,
};

use blake3::Hash;
use qmesh_models::{
    bytes::ByteCount,
    footprint::{Footprints, ShardDemand},
    spec::{Mixer, ModelSpec, TensorSpec},
};
use qmesh_net::{
    ExpertRoom, LoadShard, PeerId, PeerWay, PeerWays, PlanEpoch, SectionContentError, SectionError, StageIndex,
    WeightAskers, WeightPeer, WeightSource, WeightSources,
    limits::{FRAME_ROWS, FRAME_WIDTH},
};
use thiserror::Error;

/// The most elements along one side of anything in a spec; real models stay far below, and products of two fit u64.
const SIDE_MAX: usize = 1 << 24;
/// The most positions of a KV budget.
const POSITIONS_MAX: usize = 1 << 28;

/// The tags that this version knows in a `LoadShard`.
const KNOWN_TAGS: [u16; 4] = [WeightSources::TAG, PeerWays::TAG, WeightAskers::TAG, ExpertRoom::TAG];

/// Which layers of which model this worker has in one plan, and with how much room.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Assignment {
    pub(crate) epoch: PlanEpoch,
    pub(crate) stage: StageIndex,
    pub(crate) stages: u16,
    pub(crate) model_id: [u8; 32],
    pub(crate) model_name: String,
    /// The model's shape with only this shard's tensors.
    pub(crate) spec: ModelSpec,
    /// BLAKE3 of each of the spec's tensors.
    pub(crate) hashes: Vec<Hash>,
    /// Not empty, inside the model.
    pub(crate) layers: Range<usize>,
    pub(crate) kv_positions: usize,
    pub(crate) context: usize,
    pub(crate) chunk_rows: usize,
    /// How many of a layer's experts are in memory at a time, where the others stay on disk.
    pub(crate) experts_in_memory: Option<NonZeroUsize>,
    /// Workers that have tensors of it, or get them.
    pub(crate) peers: Vec<WeightPeer>,
    /// Which of them can be asked for which tensor.
    pub(crate) sources: HashMap<Hash, Vec<WeightSource>>,
    /// Workers that may ask this one for tensors.
    pub(crate) askers: BTreeSet<PeerId>,
    /// Where these are, as far as the coordinator says.
    pub(crate) asker_ways: Vec<PeerWay>,
    /// Tensors that they wait for.
    pub(crate) awaited: HashSet<Hash>,
}

/// Why a `LoadShard` makes no sense.
#[derive(Debug, Error)]
pub(crate) enum AssignmentError {
    #[error(transparent)]
    Section(#[from] SectionError),
    #[error(transparent)]
    Weights(#[from] SectionContentError),
    #[error("the spec does not parse: {0}")]
    Spec(#[from] serde_json::Error),
    #[error("layers {}-{} of a model with {of}", layers.start, layers.end)]
    Layers { layers: Range<usize>, of: usize },
    #[error("stage {stage} of {stages} cannot hold layers {}-{} of {of}", layers.start, layers.end)]
    Stage { stage: StageIndex, stages: u16, layers: Range<usize>, of: usize },
    #[error("{hashes} hashes for {tensors} tensors")]
    Hashes { hashes: usize, tensors: usize },
    #[error("tensor {name} has {bytes} bytes, which {rows} rows of {cols} {dtype} do not")]
    Tensor { name: String, bytes: u64, rows: usize, cols: usize, dtype: qmesh_models::tensor::TensorType },
    #[error("{what} {found} is out of range, the limit is {limit}")]
    Range { what: &'static str, found: usize, limit: usize },
}

impl Assignment {
    /// Whether the first stage computes it: frames bring token ids.
    pub(crate) fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether the last stage computes it: frames leave with samples.
    pub(crate) fn is_last(&self) -> bool {
        self.layers.end == self.spec.layers.len()
    }

    /// Elements of a row that comes from the stage before.
    pub(crate) fn incoming_width(&self) -> usize {
        self.spec.row_width(self.layers.start)
    }

    /// Elements of a row that goes to the next stage.
    pub(crate) fn outgoing_width(&self) -> usize {
        self.spec.row_width(self.layers.end)
    }

    /// Bytes of its tensors.
    pub(crate) fn weight_bytes(&self) -> u64 {
        self.spec.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Memory that a worker takes with it, by the account that the planner keeps as well.
    pub(crate) fn needed_bytes(&self, threads: usize) -> ByteCount {
        ByteCount(Footprints::new(&self.spec).shard(&self.demand(threads)).total_bytes())
    }

    /// What it asks of a worker with so many threads.
    pub(crate) fn demand(&self, threads: usize) -> ShardDemand {
        let Self { ref layers, kv_positions, context, chunk_rows, experts_in_memory, .. } = *self;
        ShardDemand { layers: layers.clone(), kv_positions, context, chunk_rows, threads, experts_in_memory }
    }

    /// `layers 0-9 of smollm2-135m`.
    pub(crate) fn title(&self) -> String {
        format!("layers {}-{} of {}", self.layers.start, self.layers.end - 1, self.model_name)
    }

    fn check_place(&self) -> Result<(), AssignmentError> {
        let (layers, of) = (self.layers.clone(), self.spec.layers.len());
        if layers.is_empty() || layers.end > of {
            return Err(AssignmentError::Layers { layers, of });
        }
        let first = self.stage.0 == 0;
        let last = self.stage.0.checked_add(1) == Some(self.stages);
        if first != self.is_first() || last != self.is_last() || self.stage.0 >= self.stages {
            return Err(AssignmentError::Stage { stage: self.stage, stages: self.stages, layers, of });
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), AssignmentError> {
        let within = |what, found, limit| match found {
            1.. if found <= limit => Ok(()),
            _ => Err(AssignmentError::Range { what, found, limit }),
        };
        within("hidden width", self.spec.hidden, FRAME_WIDTH)?;
        within("width of a row", self.incoming_width().max(self.outgoing_width()), FRAME_WIDTH)?;
        within("vocabulary", self.spec.vocab, SIDE_MAX)?;
        within("kv positions", self.kv_positions, POSITIONS_MAX)?;
        within("context", self.context, POSITIONS_MAX)?;
        within("chunk rows", self.chunk_rows, FRAME_ROWS)?;
        for layer in &self.spec.layers {
            sizes(&layer.mixer).into_iter().try_for_each(|(what, size)| within(what, size, FRAME_WIDTH))?;
        }
        self.spec.tensors.iter().try_for_each(check_tensor)
    }
}

/// What a layer's first half is made of, by name.
fn sizes(mixer: &Mixer) -> Vec<(&'static str, usize)> {
    match mixer {
        Mixer::Attention(attention) => {
            vec![("heads", attention.heads), ("kv heads", attention.kv_heads), ("head width", attention.head_dim)]
        }
        Mixer::GatedDelta(delta) => vec![
            ("key heads", delta.key_heads),
            ("value heads", delta.value_heads),
            ("head width", delta.head_dim),
            ("taps", delta.taps),
        ],
        Mixer::Latent(latent) => {
            let indexer = latent.indexer().into_iter();
            let indexer = indexer.flat_map(|of| [("indexer heads", of.heads), ("indexer head width", of.head_dim)]);
            let own = [
                ("heads", latent.heads),
                ("latent width", latent.latent_dim),
                ("plain width", latent.plain_dim),
                ("rotated width", latent.rope_dim),
                ("value width", latent.value_dim),
            ];
            own.into_iter().chain(indexer).collect()
        }
        Mixer::StateSpace(space) => vec![
            ("heads", space.heads),
            ("head width", space.head_dim),
            ("groups", space.groups),
            ("state size", space.state_size),
            ("taps", space.taps),
        ],
        Mixer::None => vec![],
    }
}

impl TryFrom<LoadShard> for Assignment {
    type Error = AssignmentError;

    fn try_from(load: LoadShard) -> Result<Self, AssignmentError> {
        load.sections.understood(&KNOWN_TAGS)?;
        let mut spec: ModelSpec = serde_json::from_slice(&load.spec_json)?;
        let (hashes, tensors) = (load.tensor_hashes.len(), spec.tensors.len());
        if hashes != tensors {
            return Err(AssignmentError::Hashes { hashes, tensors });
        }
        let named = WeightSources::find(&load.sections, hashes)?;
        let asked = WeightAskers::find(&load.sections, hashes)?;
        let experts_in_memory =
            ExpertRoom::find(&load.sections)?.and_then(|room| NonZeroUsize::new(room.each as usize));
        let mut asker_ways = PeerWays::find(&load.sections)?.peers;
        asker_ways.retain(|way| asked.peers.contains(&way.peer));
        // Both have checked that they name tensors of the list.
        let hash = |tensor: u32| Hash::from_bytes(load.tensor_hashes[tensor as usize]);
        let sources = named.tensors.into_iter().map(|of| (hash(of.tensor), of.sources)).collect();
        let awaited = asked.first.into_iter().map(hash).collect();
        let layers = load.layers.start as usize..load.layers.end as usize;
        // A coordinator may send the whole model's list: what is not this shard's is neither fetched nor kept.
        let all = std::mem::take(&mut spec.tensors).into_iter().zip(load.tensor_hashes);
        let own: Vec<_> = all.filter(|(tensor, _)| spec.holds(&layers, tensor.role)).collect();
        let (own, hashes) = own.into_iter().map(|(tensor, hash)| (tensor, Hash::from_bytes(hash))).unzip();
        spec.tensors = own;
        let assignment = Self {
            epoch: load.epoch,
            stage: load.stage,
            stages: load.stages,
            model_id: load.model_id,
            model_name: load.model_name,
            spec,
            hashes,
            layers,
            kv_positions: load.kv_positions as usize,
            context: load.context as usize,
            chunk_rows: load.chunk_rows as usize,
            experts_in_memory,
            peers: named.peers,
            sources,
            askers: asked.peers.into_iter().collect(),
            asker_ways,
            awaited,
        };
        assignment.check_place()?;
        assignment.check_sizes()?;
        Ok(assignment)
    }
}

/// A tensor's length follows from its shape, and neither can overflow a sum over a spec's tensors.
fn check_tensor(tensor: &TensorSpec) -> Result<(), AssignmentError> {
    let TensorSpec { name, rows, cols, dtype, bytes, .. } = tensor;
    let fits = (1..=SIDE_MAX).contains(rows) && (1..=SIDE_MAX).contains(cols);
    let row_bytes = dtype.row_bytes(*cols).filter(|_| fits);
    if row_bytes.and_then(|row| row.checked_mul(*rows)).is_some_and(|product| product as u64 == *bytes) {
        return Ok(());
    }
    Err(AssignmentError::Tensor { name: name.clone(), bytes: *bytes, rows: *rows, cols: *cols, dtype: *dtype })
}
