//! What is expected of prompts.

use super::*;

/// Two workers of one stage each, which compute every row in the same time.
fn halves(spec: &ModelSpec, attention_ps: f64) -> PlanInput<'_> {
    let point = |rows: u32| SpeedPoint { rows, layers_ps_per_byte: 100.0 * f64::from(rows), head_ps_per_byte: 0.0 };
    let speed = Speed::measured(vec![point(1), point(256)]).map(|speed| speed.with_attention(Some(attention_ps)));
    let workers = (0..2).map(|index| Capacity { speed: speed.clone(), ..worker(index, 1 << 30, 1) }).collect();
    let cut = Some(vec![spec.layers.len() / 2]);
    PlanInput { cut, ..PlanInput::new(spec, workers, 2048, 2048, 512) }
}

fn ttft_ms(input: &PlanInput<'_>, tokens: usize) -> f64 {
    predict(input, &solve(input).unwrap(), 1).unwrap().ttft_ms(tokens)
}

#[test]
fn a_prompt_is_cut_as_the_scheduler_cuts_it() {
    let spec = spec(&[1_000_000; 8], 0, HeadMatrix::Tied);
    let input = halves(&spec, 0.0);
    // A row takes a stage 0.4 ms. The second stage begins after the first chunk, of 64 rows, and is never idle then. Three hops,
    // and a session opened, are 0.75 ms.
    assert!((ttft_ms(&input, 512) - (0.4 * (512.0 + 64.0) + 0.75)).abs() < 0.01, "{}", ttft_ms(&input, 512));
    assert!((ttft_ms(&input, 64) - (0.4 * (64.0 + 32.0) + 0.75)).abs() < 0.01);
    let one = PlanInput { cut: Some(vec![]), ..input };
    assert!((ttft_ms(&one, 512) - (0.8 * 512.0 + 0.6)).abs() < 0.01, "{}", ttft_ms(&one, 512));
}

#[test]
fn rows_far_into_a_prompt_take_longer() {
    let spec = spec(&[1_000_000; 8], 0, HeadMatrix::Tied);
    let [free, dear] = [0.0, 1000.0].map(|ps| halves(&spec, ps));
    let extra = |tokens| ttft_ms(&dear, tokens) - ttft_ms(&free, tokens);
    assert!(extra(32).abs() < 1e-9, "rows of one chunk have met while the speed was measured");
    // 32 bytes a position in each of four layers: of 64-row chunks the second has 64 positions before it, and so on.
    assert!(extra(512) > 3.5 * extra(256) && extra(256) > 0.0, "{} {}", extra(256), extra(512));
}
