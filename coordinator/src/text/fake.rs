//! A made-up vocabulary and a scripted mesh, for tests.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use qmesh_models::{
    chat::ChatTemplate,
    tokenizer::{PretokenizerChoice, Tokenizer, Vocabulary},
};
use qmesh_net::{Candidate, JoinCode, PeerId, Sampled};
use tokio::sync::{mpsc, watch};

use super::{BreakerShelf, ModelFacts, TextModel};
use crate::{
    generate::{Finish, FinishReason, GenerateEvent, GenerateRequest, Pooling},
    grammar::GrammarDesk,
    mesh::{
        MeshHandle,
        events::EventBus,
        handle::{Call, Submission, There, WorkerId},
        lobby::Newcomer,
        members::Members,
        status::{MeshState, MeshStatus, SequencePhase, SequenceStatus, StepsStatus},
    },
};

/// Positions that the made-up model holds.
pub(crate) const CONTEXT: usize = 64;
/// Values of its rows.
pub(crate) const HIDDEN: usize = 4;
/// Ends a generation.
pub(crate) const END: u32 = 2;
/// A control token that is no text and ends nothing.
pub(crate) const CONTROL: u32 = 3;

/// A control token that stands between the name and the arguments of a call.
pub(crate) const ARGS: u32 = FIRST_WORD + 9;

const WORDS: [&str; 9] = ["▁", "Hello", "▁world", "▁ST", "OP", "▁more", "a", "b", "c"];
const FIRST_BYTE: u32 = 4;
const FIRST_WORD: u32 = FIRST_BYTE + 256;

/// Writes each message as its role's first letter, a colon, its content and a line end; then how many tools there are.
const TEMPLATE: &str = "{% for m in messages %}\
    {% if m.content == 'clown' %}{{ raise_exception('no clowns') }}{% endif %}{{ m.role[0] }}:{{ m.content }}\n\
    {% endfor %}{% if tools %}{{ tools|length }}{% endif %}{{ mood }}";

/// The made-up model: bytes, a few words, and control tokens.
pub(crate) fn model() -> TextModel {
    model_with(&[])
}

/// The same with tokens for a text without its middle.
pub(crate) fn infilling() -> TextModel {
    model_with(&["<PRE>", "<SUF>", "<MID>"])
}

fn model_with(more: &[&str]) -> TextModel {
    let controls = ["<unk>", "<s>", "</s>", "<|tool|>"].map(|text| (text.to_owned(), 3));
    let bytes = (0..=255_u8).map(|byte| (format!("<0x{byte:02X}>"), 6));
    let words = WORDS.map(|word| (word.to_owned(), 1));
    let args = ("[ARGS]".to_owned(), 3);
    let more = more.iter().map(|text| ((*text).to_owned(), 3));
    let tokens = controls.into_iter().chain(bytes).chain(words).chain([args]).chain(more);
    let (tokens, token_types): (Vec<String>, Vec<i32>) = tokens.unzip();
    let vocabulary = Vocabulary {
        model: "llama".to_owned(),
        scores: vec![0.0; tokens.len()],
        tokens,
        token_types,
        bos: Some(1),
        eos: Some(END),
        add_bos: Some(true),
        add_space_prefix: Some(false),
        ..Vocabulary::default()
    };
    let tokenizer = Tokenizer::new(vocabulary, PretokenizerChoice::FromModel).expect("a sound vocabulary");
    TextModel {
        name: "made-up".to_owned(),
        ends: tokenizer.ends_of_generation().into(),
        tokenizer: Arc::new(tokenizer),
        template: Ok(Arc::new(ChatTemplate::new(TEMPLATE, "<s>", "</s>").expect("a sound template"))),
        family: "llama".to_owned(),
        facts: Arc::new(ModelFacts {
            digest: "5a".repeat(32),
            parameters: 134_515_008,
            quantization: "Q8_0".to_owned(),
            for_vectors: false,
        }),
        context: CONTEXT,
        hidden: HIDDEN,
        pooling: Pooling::Mean,
        grammars: GrammarDesk::default(),
        breakers: BreakerShelf::default(),
    }
}

/// The id of a word.
pub(crate) fn word(text: &str) -> u32 {
    let place = WORDS.iter().position(|word| *word == text).expect("a word of the vocabulary");
    FIRST_WORD + u32::try_from(place).expect("few words")
}

/// The id of a byte.
pub(crate) fn byte(value: u8) -> u32 {
    FIRST_BYTE + u32::from(value)
}

/// The ids of a text's bytes.
pub(crate) fn written(text: &str) -> Vec<u32> {
    text.bytes().map(byte).collect()
}

/// A sampled token, its id as its log-probability, with two candidates.
pub(crate) fn row(token: u32) -> Sampled {
    let candidate = |id: u32, logprob| Candidate { id, logit: 0.0, logprob };
    Sampled {
        token,
        logprob: -0.5,
        target_logprob: -1.5,
        digest: 0,
        top: vec![candidate(token, -0.5), candidate(word("a"), -2.0)],
    }
}

/// The events of a generation of these tokens that comes to its end.
pub(crate) fn generation(tokens: &[u32]) -> Vec<GenerateEvent> {
    let reason = if tokens.last() == Some(&END) { FinishReason::End } else { FinishReason::Length };
    let finish = Finish {
        reason,
        prompt_tokens: 0,
        generated_tokens: tokens.len(),
        prefill: Duration::from_millis(1),
        decode: Duration::from_millis(2),
    };
    let tokens = tokens.iter().map(|&token| GenerateEvent::Token(row(token)));
    tokens.chain([GenerateEvent::Finished(finish)]).collect()
}

/// A mesh that answers every request with the events that a script gives for it.
pub(crate) struct FakeMesh {
    pub(crate) handle: MeshHandle,
    pub(crate) status: watch::Sender<Arc<MeshStatus>>,
    pub(crate) bus: EventBus,
    /// What was submitted.
    pub(crate) seen: Arc<Mutex<Vec<GenerateRequest>>>,
    /// Says so when the reader of a generation that its script did not end goes away.
    pub(crate) cancelled: mpsc::Receiver<()>,
}

impl FakeMesh {
    pub(crate) fn new(script: impl Fn(&GenerateRequest) -> Vec<GenerateEvent> + Send + 'static) -> Self {
        let (calls, mut called) = mpsc::channel::<Call>(64);
        let (status, watched) = watch::channel(Arc::new(mesh_status(MeshState::Ready)));
        let (cancel, cancelled) = mpsc::channel(64);
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Some(call) = called.recv().await {
                let Submission { request, events } = match call {
                    Call::Submit(submission) => submission,
                    Call::Sequences(answer) => {
                        answer.send(sequences()).expect("the caller waits");
                        continue;
                    }
                    Call::Cancel { request, found } => {
                        found.send(request == 1).expect("the caller waits");
                        continue;
                    }
                    Call::There(answer) => {
                        answer.send(there()).expect("the caller waits");
                        continue;
                    }
                    Call::Meet(_) => continue,
                    Call::Refuse { worker, refused } => {
                        refused.send(worker == WorkerId(1)).expect("the caller waits");
                        continue;
                    }
                    Call::Heed(heeded) => {
                        heeded.send(()).expect("the caller waits");
                        continue;
                    }
                };
                let script = script(&request);
                let ends = matches!(script.last(), Some(GenerateEvent::Finished(_) | GenerateEvent::Failed(_)));
                log.lock().expect("no panic holds it").push(request);
                for event in script {
                    events.try_send(event).expect("scripts fit the buffer");
                }
                if !ends {
                    let cancel = cancel.clone();
                    tokio::spawn(async move {
                        events.closed().await;
                        cancel.send(()).await.expect("the test listens");
                    });
                }
            }
        });
        let bus = EventBus::new();
        let handle = MeshHandle::new(calls, watched, bus.source(), Members::for_now());
        Self { handle, status, bus, seen, cancelled }
    }

    /// Waits until the reader of an unended generation has gone.
    pub(crate) async fn cancelled(&mut self) {
        let gone = tokio::time::timeout(Duration::from_secs(5), self.cancelled.recv()).await;
        gone.expect("cancelled in time").expect("the mesh runs");
    }
}

/// A worker that is here, and two that ask by one name.
fn there() -> There {
    let newcomer = |key: u8| {
        let peer = PeerId([key; 32]);
        let code = JoinCode::of(&[key; 32], peer, peer);
        Newcomer { name: "attic".to_owned(), peer, code, address: ([10, 0, 0, key], 7).into() }
    };
    let asking = vec![(WorkerId(1), newcomer(1)), (WorkerId(2), newcomer(2))];
    There { asking, present: vec![("cellar".to_owned(), PeerId([3; 32]))] }
}

/// Two sequences, of which one runs.
fn sequences() -> Vec<SequenceStatus> {
    let running = SequenceStatus {
        request: 7,
        phase: SequencePhase::Running,
        prompt_tokens: 10,
        cached_tokens: 4,
        computed_tokens: 12,
        generated_tokens: 2,
        max_tokens: 5,
        temperature: 0.5,
        seed: 3,
    };
    vec![running, SequenceStatus { request: 8, phase: SequencePhase::Waiting, ..running }]
}

/// A status in this state.
pub(crate) fn mesh_status(state: MeshState) -> MeshStatus {
    MeshStatus {
        model: "made-up".to_owned(),
        state,
        text: "one worker is missing".to_owned(),
        epoch: 1,
        context: CONTEXT,
        kv_positions: 256,
        kv_positions_used: 0,
        stages: Vec::new(),
        workers: Vec::new(),
        open: false,
        asking: Vec::new(),
        change: None,
        running: 0,
        waiting: 0,
        weight_bytes_sent: 0,
        relayed_bytes: 0,
        prompt_tokens: 0,
        cached_tokens: 0,
        generated_tokens: 0,
        drafted_tokens: 0,
        accepted_tokens: 0,
        draft_model: None,
        preemptions: 0,
        steps: StepsStatus::default(),
        prediction: None,
        uptime_s: 0,
    }
}
