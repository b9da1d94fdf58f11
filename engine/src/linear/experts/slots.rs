//! Experts that are in memory some at a time: what a step needs and is not there is read from files, in place of what was
//! not needed for longest.

use std::{
    fmt, mem,
    ops::{Deref, Range},
    sync::{Arc, Mutex, PoisonError},
};

use qmesh_kernels::{
    Cpu,
    buffer::{Buffer, Bytes},
    lanes::LANES,
    matrix::Matrix,
};
use qmesh_models::{
    footprint::expert_places,
    spec::{ExpertForm, ExpertsSpec},
    tensor::TensorType,
};

use crate::{
    backend::TensorFile,
    error::EngineError,
    linear::{Gated, Linear},
};

/// The weights of a layer's experts.
#[derive(Debug)]
pub(crate) enum ExpertWeights {
    /// All of them.
    InMemory(Vec<Gated>),
    /// Some at a time.
    Filed(Box<ExpertSlots>),
}

/// What every expert has of one kind, one expert's below the other's in a file.
#[derive(Debug)]
pub(crate) struct ExpertFile {
    pub(crate) file: Arc<dyn TensorFile>,
    pub(crate) dtype: TensorType,
    /// Of one expert; whole groups of sixteen.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_bytes: usize,
    /// Of every expert.
    pub(crate) biases: Vec<Option<Arc<[f32]>>>,
}

/// Room for some of a layer's experts, whose matrices lie in files.
#[derive(Debug)]
pub(crate) struct ExpertSlots {
    spec: ExpertsSpec,
    files: Vec<ExpertFile>,
    /// Where what is of each file lies in a slot.
    places: Vec<Range<usize>>,
    /// What an expert is like, without a byte of it.
    shape: Gated,
    slots: Mutex<Vec<Slot>>,
}

struct Slot {
    /// Whose matrices are there.
    expert: Option<usize>,
    /// How many times experts had been asked for when this one was.
    asked: u64,
    buffer: Arc<Buffer>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({:?})", self.expert)
    }
}

/// Why there is no room for experts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SlotsError {
    /// So many bytes are too many.
    Memory { needed: u64 },
    /// Gates cannot be told from what stands below them.
    Shape,
}

/// One expert of what the files have of it: its gate, its up and its down, or as its form has them. `None` where gate and up are
/// one matrix that cannot be cut.
pub(crate) fn assembled(spec: &ExpertsSpec, linears: Vec<Linear>) -> Option<Gated> {
    let (activation, mut linears) = (spec.activation, linears.into_iter());
    let first = linears.next()?;
    let (gate, up) = match spec.form {
        ExpertForm::Gated => (first, Some(linears.next()?)),
        ExpertForm::Plain => (first, None),
        ExpertForm::GatedTogether => {
            let half = |rows| Some(Linear { matrix: first.matrix.part(rows)?, bias: None });
            (half(0..spec.inner)?, Some(half(spec.inner..2 * spec.inner)?))
        }
    };
    Some(Gated { activation, gate, up, down: linears.next()? })
}

/// An expert that can be computed.
pub(super) enum Expert<'a> {
    Kept(&'a Gated),
    Placed(Gated),
}

impl Deref for Expert<'_> {
    type Target = Gated;

    fn deref(&self) -> &Gated {
        match self {
            Self::Kept(expert) => expert,
            Self::Placed(expert) => expert,
        }
    }
}

impl ExpertWeights {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::InMemory(experts) => experts.len(),
            Self::Filed(slots) => slots.spec.count,
        }
    }

    /// One that stands for all, if only in shape.
    pub(super) fn shape(&self) -> Option<&Gated> {
        match self {
            Self::InMemory(experts) => experts.first(),
            Self::Filed(slots) => Some(&slots.shape),
        }
    }

    /// The experts of `used` in the order in which they are best computed, as many at a time as there is room for.
    pub(super) fn rounds(&self, used: Vec<usize>) -> Vec<Vec<usize>> {
        match self {
            Self::InMemory(_) => vec![used],
            Self::Filed(slots) => slots.rounds(used),
        }
    }

    /// The experts of one of the rounds.
    pub(super) fn experts(&self, cpu: Cpu<'_>, round: &[usize]) -> Result<Vec<Expert<'_>>, EngineError> {
        match self {
            Self::InMemory(experts) => Ok(round.iter().map(|&expert| Expert::Kept(&experts[expert])).collect()),
            Self::Filed(slots) => Ok(slots.experts(cpu, round)?.into_iter().map(Expert::Placed).collect()),
        }
    }

    /// The experts of this round are asked for next.
    pub(super) fn read_ahead(&self, round: &[usize]) {
        match self {
            Self::InMemory(_) => {}
            Self::Filed(slots) => {
                for (&expert, file) in
                    round.iter().flat_map(|expert| slots.files.iter().map(move |file| (expert, file)))
                {
                    file.file.read_ahead(file.offset(expert), file.bytes() as u64);
                }
            }
        }
    }
}

impl ExpertFile {
    /// Bytes of one expert's matrix.
    fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// Where an expert's matrix begins.
    fn offset(&self, expert: usize) -> u64 {
        (expert * self.bytes()) as u64
    }

    fn linear(&self, bytes: Bytes, bias: Option<Arc<[f32]>>) -> Linear {
        Linear { matrix: Matrix { dtype: self.dtype, rows: self.rows, cols: self.cols, bytes }, bias }
    }

    /// What has to be read so that `place` holds an expert's matrix.
    fn pieces<'a>(&'a self, expert: usize, place: &'a mut [u8]) -> impl Iterator<Item = Piece<'a>> {
        let group = self.row_bytes * LANES;
        let len = (PIECE_BYTES / group).max(1) * group;
        let pieces = place.chunks_mut(len).enumerate();
        pieces.map(move |(i, into)| Piece { file: self, offset: self.offset(expert) + (i * len) as u64, into })
    }
}

/// Some groups of rows of an expert's matrix.
struct Piece<'a> {
    file: &'a ExpertFile,
    offset: u64,
    into: &'a mut [u8],
}

impl Piece<'_> {
    /// Reads and packs it.
    fn fill(self) -> Result<(), EngineError> {
        self.file.file.read_at(self.offset, self.into)?;
        Matrix::pack_groups(self.file.dtype, self.file.row_bytes, self.into);
        Ok(())
    }
}

impl ExpertSlots {
    /// Room for `slots` experts.
    pub(crate) fn new(spec: &ExpertsSpec, files: Vec<ExpertFile>, slots: usize) -> Result<Self, SlotsError> {
        let (places, bytes) = expert_places(files.iter().map(ExpertFile::bytes));
        let needed = (bytes as u64).saturating_mul(slots as u64);
        let buffers = Buffer::adjacent(&vec![bytes; slots]).zip(Buffer::new(0));
        let (buffers, nothing) = buffers.ok_or(SlotsError::Memory { needed })?;
        let nothing = Arc::new(nothing);
        let shape = files.iter().map(|file| file.linear(Bytes::new(Arc::clone(&nothing), 0..0), None)).collect();
        let shape = assembled(spec, shape).ok_or(SlotsError::Shape)?;
        let slot = |buffer| Slot { expert: None, asked: 0, buffer: Arc::new(buffer) };
        let slots = Mutex::new(buffers.into_iter().map(slot).collect());
        Ok(Self { spec: spec.clone(), files, places, shape, slots })
    }

    /// First those that are there, before others take their room.
    fn rounds(&self, used: Vec<usize>) -> Vec<Vec<usize>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (here, away): (Vec<_>, Vec<_>) =
            used.into_iter().partition(|expert| slots.iter().any(|slot| slot.expert == Some(*expert)));
        let here = Some(here).filter(|here| !here.is_empty());
        here.into_iter().chain(away.chunks(slots.len()).map(<[_]>::to_vec)).collect()
    }

    /// Experts, each once and no more than there are slots for.
    fn experts(&self, cpu: Cpu<'_>, wanted: &[usize]) -> Result<Vec<Gated>, EngineError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        self.place(cpu, &mut slots, wanted)?;
        let slot = |expert: usize| slots.iter().find(|slot| slot.expert == Some(expert));
        Ok(wanted.iter().filter_map(|&expert| self.expert(expert, slot(expert)?)).collect())
    }

    /// Reads what is missing of `wanted` into the slots that were asked for the longest ago.
    fn place(&self, cpu: Cpu<'_>, slots: &mut [Slot], wanted: &[usize]) -> Result<(), EngineError> {
        let asked = 1 + slots.iter().map(|slot| slot.asked).max().unwrap_or(0);
        let mut missing = wanted.to_vec();
        for slot in &mut *slots {
            if let Some(at) = missing.iter().position(|expert| slot.expert == Some(*expert)) {
                missing.swap_remove(at);
                slot.asked = asked;
            }
        }
        let mut free: Vec<&mut Slot> = slots.iter_mut().filter(|slot| slot.asked < asked).collect();
        free.sort_by_key(|slot| slot.asked);
        let mut pieces = Vec::new();
        let mut filled = Vec::new();
        for (&expert, slot) in missing.iter().zip(free) {
            let Slot { expert: whose, asked: when, buffer } = slot;
            *whose = None;
            // Whatever was computed with it is done, so that nobody else has it.
            let Some(buffer) = Arc::get_mut(buffer) else { continue };
            let mut rest = buffer.bytes_mut();
            let mut end = 0;
            for (file, place) in self.files.iter().zip(&self.places) {
                let (part, behind) = mem::take(&mut rest)[place.start - end..].split_at_mut(place.len());
                (rest, end) = (behind, place.end);
                pieces.extend(file.pieces(expert, part));
            }
            filled.push((whose, when, expert));
        }
        cpu.team.map(pieces, Piece::fill).into_iter().collect::<Result<(), _>>()?;
        for (whose, when, expert) in filled {
            (*whose, *when) = (Some(expert), asked);
        }
        Ok(())
    }

    fn expert(&self, expert: usize, slot: &Slot) -> Option<Gated> {
        let linear = |(file, place): (&ExpertFile, &Range<usize>)| {
            file.linear(Bytes::new(Arc::clone(&slot.buffer), place.clone()), file.biases[expert].clone())
        };
        assembled(&self.spec, self.files.iter().zip(&self.places).map(linear).collect())
    }
}

/// Bytes that a thread reads and packs at a time.
const PIECE_BYTES: usize = 512 << 10;
