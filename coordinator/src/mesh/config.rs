//! What a mesh is made of: its model, its room, when workers become a pipeline, and how its ticket is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Range,
    path::PathBuf,
    sync::Arc,
};

use qmesh_models::spec::ModelSpec;
use qmesh_net::{RelaySecret, Strangers};

use super::error::MeshError;
use crate::{
    drafter::Drafter,
    model::Model,
    plan::{Experts, Goal, Workload},
};

/// What a mesh is made of.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// The model that it serves.
    pub model: Arc<Model>,
    /// Where workers dial in.
    pub listen: SocketAddr,
    /// Addresses for the ticket; with none, those of `listen`.
    pub advertise: Vec<String>,
    /// Workers that bring others together with this coordinator, where nobody reaches it, each as `host:port`.
    pub rendezvous: Vec<String>,
    /// The most positions of one session.
    pub context: usize,
    /// KV positions of all sessions together; at least `context`.
    pub kv_positions: usize,
    /// When workers become a pipeline.
    pub formation: Formation,
    /// The most rows of one step: how long prompts are cut into chunks.
    pub chunk_rows: usize,
    /// Whether the ticket outlives the process.
    pub ticket: TicketSource,
    /// Whether workers without a ticket may ask to join.
    pub strangers: Strangers,
    /// Whether prompts begin with what earlier ones have left on the stages.
    pub prefix_reuse: PrefixReuse,
    /// Whether tokens are drafted from the text so far.
    pub speculation: Speculation,
    /// A small model that drafts where the text does not.
    pub drafter: Option<Drafter>,
}

impl MeshConfig {
    /// Whether the sizes go together.
    ///
    /// # Errors
    /// They contradict each other.
    pub(crate) fn check(&self) -> Result<(), MeshError> {
        let (context, kv_positions) = (self.context, self.kv_positions);
        if context == 0 || self.chunk_rows == 0 {
            Err(MeshError::NoRoom)
        } else if kv_positions < context {
            Err(MeshError::KvBelowContext { kv_positions, context })
        } else {
            Ok(())
        }
    }
}

/// Whether prompts begin with what earlier ones have left on the stages. It changes no bit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PrefixReuse {
    /// Ended sessions leave their beginning behind, as long as nobody needs the room.
    #[default]
    On,
    /// Every prompt is computed whole.
    Off,
}

impl PrefixReuse {
    /// What a model can do: layers with a state have none for a position in the middle of a session.
    pub(crate) fn of_model(self, spec: &ModelSpec) -> Self {
        if spec.has_states() { Self::Off } else { self }
    }
}

/// Whether tokens are drafted from the text so far, and verified several at a time. It changes no bit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Speculation {
    /// Where it pays, going by the measured times.
    #[default]
    On,
    /// Every step computes one token.
    Off,
}

/// When workers become a pipeline, and with what cut.
#[derive(Clone, Debug)]
pub struct Formation {
    /// How many it takes.
    pub workers: Workers,
    /// Layers at which to cut, instead of the planner's choice.
    pub cut: Option<Vec<usize>>,
    /// What there will be most of.
    pub workload: Workload,
    /// What the plan shall be best at.
    pub goal: Goal,
    /// Whether experts may stay on workers' disks.
    pub experts: Experts,
    /// Workers that hold exactly these layers, by name: the mesh waits for them.
    pub pins: BTreeMap<String, Range<usize>>,
    /// Workers that get no layers, by name.
    pub excluded: BTreeSet<String>,
    /// Whether workers are asked how fast they are before layers are dealt.
    pub measuring: Measuring,
    /// Whether the coordinator passes packets on between workers that cannot reach each other.
    pub relaying: Relaying,
}

impl Formation {
    /// For so many workers, with nothing asked for or known beside that.
    pub fn new(workers: Workers) -> Self {
        Self {
            workers,
            cut: None,
            workload: Workload::default(),
            goal: Goal::default(),
            experts: Experts::default(),
            pins: BTreeMap::new(),
            excluded: BTreeSet::new(),
            measuring: Measuring::Off,
            relaying: Relaying::Off,
        }
    }
}

/// Whether the coordinator passes packets on between workers that cannot reach each other. It cannot read them.
#[derive(Clone, Debug)]
pub enum Relaying {
    /// Where there is no other way; this makes the tags by which it knows whose packets they are.
    On(RelaySecret),
    /// Never: such workers are no neighbours.
    Off,
}

/// Whether workers are asked how fast they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Measuring {
    /// They compute a small model of the same kind when they join.
    On,
    /// They are compared by their threads.
    Off,
}

/// How many workers it takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Workers {
    /// Exactly so many; workers that join later stand by.
    Exactly(usize),
    /// So many or more; when others join, the layers are dealt again.
    AtLeast(usize),
    /// As many as it takes to hold the model; when others join, the layers are dealt again.
    WhenItFits,
}

impl Workers {
    /// The fewest that shall have layers, where there is a plan with so many; 0 where any number will do.
    pub(crate) fn least(self) -> usize {
        match self {
            Self::Exactly(n) | Self::AtLeast(n) => n,
            Self::WhenItFits => 0,
        }
    }
}

/// Whether the ticket outlives the process.
#[derive(Clone, Debug)]
pub enum TicketSource {
    /// A key and a secret for this process only.
    Fresh,
    /// Kept in a directory, so that workers find back after a restart.
    Kept {
        /// Where the key and the secret lie, mode 0600.
        directory: PathBuf,
        /// Whether to make earlier tickets worthless.
        rotate: Rotate,
        /// When the ticket stops letting new workers in, in seconds since 1970; `None` leaves it as it was kept.
        expires_unix: Option<u64>,
    },
}

/// Whether to make earlier tickets worthless.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rotate {
    /// Earlier tickets stay good.
    Keep,
    /// A new secret: who has only an old ticket is refused.
    New,
}
