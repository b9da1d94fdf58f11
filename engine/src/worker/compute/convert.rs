//! Frames to steps and back: what the wire says in segments, the shard computes as sequences.

use std::collections::BTreeSet;

use qmesh_models::footprint::{SUMMED_SEQUENCES, step_rows};
use qmesh_net::{
    Candidate, Digest, Dry, FaultCode, Frame, FrameKind, MaskedRows, RowSum, Sampled, Sampling, Sections, Segment,
    SessionId, Wants, limits::VALUE_BYTES,
};

use super::{masks::StepMasks, wire};
use crate::{
    error::EngineError,
    sample::{self, LogitsDigest, SamplingParameters},
    step::{self, SampledRow, Samples, SequenceRows, Step, StepOutput, TokenSet},
    worker::assignment::Assignment,
};

/// The step that a frame asks for.
///
/// # Errors
/// In words, when the frame is not for this stage.
pub(super) fn to_step(assignment: &Assignment, frame: &Frame) -> Result<Step, String> {
    let expected = if assignment.is_first() { FrameKind::Tokens } else { FrameKind::Hidden };
    if frame.kind != expected {
        return Err(format!("stage {} takes {expected:?} frames, this one is {:?}", assignment.stage, frame.kind));
    }
    let rows: u64 = frame.segments.iter().map(|segment| u64::from(segment.rows)).sum();
    if rows != frame.rows() as u64 {
        return Err(format!("{rows} rows in segments, {} token ids", frame.rows()));
    }
    let most = step_rows(assignment.chunk_rows);
    if frame.rows() > most {
        return Err(format!("{rows} rows, this plan's steps have {most} at most"));
    }
    let sums = frame.segments.iter().filter(|segment| segment.wants.is_sum()).count();
    if sums > SUMMED_SEQUENCES {
        return Err(format!("{sums} sums of rows, a step has {SUMMED_SEQUENCES} at most"));
    }
    let hidden = match expected {
        FrameKind::Hidden => {
            let width = assignment.incoming_width();
            let bytes = VALUE_BYTES as u64 * u64::from(frame.width) * rows;
            if frame.width as usize != width || bytes != frame.payload.len() as u64 {
                return Err(format!(
                    "{} bytes of rows {} wide, this model's are {width} wide",
                    frame.payload.len(),
                    frame.width
                ));
            }
            Some(wire::decode(&frame.payload))
        }
        FrameKind::Tokens | FrameKind::Sampled | FrameKind::End => None,
    };
    let sequences = frame.segments.iter().map(|segment| SequenceRows {
        session: segment.session.0,
        position: segment.position as usize,
        rows: segment.rows as usize,
        wants: wants(segment.wants),
    });
    Ok(Step { sequences: sequences.collect(), ids: frame.ids.clone(), hidden, ..Step::default() })
}

/// Lets only those tokens follow that the masks name. Says which sessions lack a mask.
pub(super) fn allow(step: &mut Step, masks: StepMasks) -> BTreeSet<SessionId> {
    let (come, lacking) = masks.into_parts();
    let allowed = come
        .into_iter()
        .map(|((session, position), mask)| ((session.0, position as usize), TokenSet::of_bits(mask.into_bits())));
    step.allowed = allowed.collect();
    lacking
}

/// Takes a session's rows of `width` values out of a step; `None` when it has none.
pub(super) fn remove(step: &mut Step, session: SessionId, width: usize) -> Option<()> {
    let index = step.sequences.iter().position(|sequence| sequence.session == session.0)?;
    let start: usize = step.sequences[..index].iter().map(|sequence| sequence.rows).sum();
    let end = start + step.sequences.remove(index).rows;
    step.ids.drain(start..end);
    if let Some(hidden) = &mut step.hidden {
        hidden.drain(start * width..end * width);
    }
    Some(())
}

/// Takes the sessions out of a step and its output that nothing could be made of: why, once for each.
pub(super) fn remove_failed(step: &mut Step, output: StepOutput) -> (StepOutput, Vec<EngineError>) {
    let samples = match output {
        StepOutput::Sampled(samples) => samples,
        StepOutput::Hidden(_) => return (output, Vec::new()),
    };
    let failures = samples.failures(step);
    let left = samples.without(step, |session| failures.iter().any(|(failed, _)| *failed == session));
    for (session, _) in &failures {
        remove(step, SessionId(*session), 0);
    }
    (StepOutput::Sampled(left), failures.into_iter().map(|(_, error)| error).collect())
}

/// The frame that leaves the stage after `step`, which is what is left of `frame`.
pub(super) fn to_frame(assignment: &Assignment, frame: &Frame, step: Step, output: StepOutput) -> Frame {
    match output {
        StepOutput::Hidden(rows) => {
            let computed = |segment: &&Segment| has(&step, segment.session);
            Frame {
                kind: FrameKind::Hidden,
                width: u32::try_from(assignment.outgoing_width()).expect("at most FRAME_WIDTH, checked when assigned"),
                segments: frame.segments.iter().filter(computed).copied().collect(),
                payload: wire::encode(rows),
                sections: passed_on(frame, &step),
                ids: step.ids,
                ..*frame
            }
        }
        StepOutput::Sampled(samples) => sampled_frame(frame, &step, samples),
    }
}

/// The rows of `frame` that wait for a mask, as they are counted among those that are left in `step`.
fn passed_on(frame: &Frame, step: &Step) -> Sections {
    let (waiting, mut left, mut sections) = (MaskedRows::of(frame), MaskedRows::default(), Sections::default());
    let rows = frame.spans().filter(|(segment, _)| has(step, segment.session)).flat_map(|(_, span)| span);
    rows.enumerate().filter(|(_, row)| waiting.contains(*row)).for_each(|(at, _)| left.insert(at));
    left.put(&mut sections);
    sections
}

/// Which session suffers from an error, if it is one alone, and what kind of fault it is.
pub(super) fn blame(error: &EngineError) -> (Option<SessionId>, FaultCode) {
    let one = |session: &u64, code| (Some(SessionId(*session)), code);
    match error {
        EngineError::Gap { session, need } => {
            one(session, FaultCode::Gap { need: u32::try_from(*need).unwrap_or(u32::MAX) })
        }
        EngineError::UnknownSession { session } => one(session, FaultCode::UnknownSession),
        EngineError::KvFull { session, .. } | EngineError::BeyondSession { session, .. } => {
            one(session, FaultCode::Capacity)
        }
        EngineError::Settled { session, .. } => one(session, FaultCode::Internal),
        EngineError::OutsideVocabulary { session, .. } => one(session, FaultCode::Frame),
        EngineError::NonFinite { session, .. } => one(session, FaultCode::Numerics),
        EngineError::NothingAllowed { session, .. } => one(session, FaultCode::Mask),
        EngineError::OutOfMemory { .. } => (None, FaultCode::Memory),
        EngineError::Step { .. } => (None, FaultCode::Frame),
        EngineError::Spec { .. }
        | EngineError::Layers { .. }
        | EngineError::MissingTensor { .. }
        | EngineError::LeftoverTensor { .. }
        | EngineError::TensorShape { .. }
        | EngineError::Read { .. }
        | EngineError::Kernels(_)
        | EngineError::Team(_)
        | EngineError::SessionOpen { .. }
        | EngineError::Prefix { .. }
        | EngineError::Sampling { .. }
        | EngineError::Tensor(_) => (None, FaultCode::Internal),
    }
}

/// Sampling as the engine knows it.
pub(crate) fn sampling(sampling: Sampling) -> SamplingParameters {
    SamplingParameters {
        temperature: sampling.temperature,
        top_k: sampling.top_k as usize,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        typical_p: sampling.typical_p,
        xtc_probability: sampling.xtc_probability,
        xtc_threshold: sampling.xtc_threshold,
        repeat_penalty: sampling.repeat_penalty,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        penalty_window: sampling.penalty_window as usize,
        dry: sampling.dry.map(|boxed| dry(*boxed)),
        seed: sampling.seed,
        sequence: sampling.sequence,
        logit_bias: sampling.logit_bias,
        top: usize::from(sampling.top),
        digest: match sampling.digest {
            Digest::Off => LogitsDigest::Skip,
            Digest::On => LogitsDigest::Compute,
        },
    }
}

fn dry(dry: Dry) -> sample::Dry {
    sample::Dry {
        multiplier: dry.multiplier,
        base: dry.base,
        allowed_length: dry.allowed_length as usize,
        window: dry.window as usize,
        breakers: TokenSet::of_bits(dry.breakers.into_bits()),
        breaking_sequences: dry.breaking_sequences,
    }
}

/// Every segment comes back, so that the coordinator sees the step's end; those without samples have no rows.
fn sampled_frame(frame: &Frame, step: &Step, samples: Samples) -> Frame {
    let mut ids = Vec::new();
    let segments = frame.spans().map(|(segment, span)| {
        // Of what was taken out there is nothing to have.
        let wants = if has(step, segment.session) { segment.wants } else { Wants::None };
        let rows = match wants {
            Wants::None | Wants::Sum | Wants::SumLast => 0,
            Wants::Last => 1,
            Wants::All => segment.rows,
        };
        ids.extend_from_slice(&frame.ids[span.end - rows as usize..span.end]);
        Segment { position: segment.position + (segment.rows - rows), rows, wants, ..*segment }
    });
    let segments = segments.collect();
    let rows: Vec<_> = samples.rows.into_iter().flatten().map(sampled).collect();
    let (width, mut payload) = Sampled::encode_rows(&rows);
    let sums: Vec<_> = samples.sums.into_iter().flatten().map(|step::RowSum(sum)| RowSum(sum)).collect();
    if !sums.is_empty() {
        payload = [payload, RowSum::encode_all(&sums)].concat().into();
    }
    Frame { kind: FrameKind::Sampled, width, segments, ids, payload, sections: Sections::default(), ..*frame }
}

fn has(step: &Step, session: SessionId) -> bool {
    step.sequences.iter().any(|sequence| sequence.session == session.0)
}

fn wants(wants: Wants) -> step::Wants {
    match wants {
        Wants::None => step::Wants::None,
        Wants::Last => step::Wants::Last,
        Wants::All => step::Wants::All,
        Wants::Sum => step::Wants::Sum,
        Wants::SumLast => step::Wants::SumLast,
    }
}

fn sampled(row: SampledRow) -> Sampled {
    let SampledRow { token, logprob, target_logprob, digest, top } = row;
    let top = top.into_iter().map(|(id, logit, logprob)| Candidate { id, logit, logprob }).collect();
    Sampled { token, logprob, target_logprob, digest, top }
}

#[cfg(test)]
mod tests;
