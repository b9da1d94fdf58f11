//! Arguments of `run` and `chat` about DRY, which keeps a text from repeating itself.

use clap::Args;
use qmesh_net::Dry;

use super::{Failure, generation::within};
use crate::text::{DryRules, TextModel};

/// How a text is kept from repeating itself word for word.
#[derive(Args, Clone, Debug)]
pub struct DryArgs {
    /// Subtract this, and more with each further token, from the logit of a token that would lengthen a repetition; 0 is off
    #[arg(long = "dry-multiplier", value_name = "X", env = "QMESH_DRY_MULTIPLIER", default_value_t = 0.0, value_parser = multiplier)]
    pub multiplier: f32,
    /// By what factor that grows with each token of the repetition
    #[arg(long = "dry-base", value_name = "F", env = "QMESH_DRY_BASE", default_value_t = DryRules::BASE, value_parser = base)]
    pub base: f32,
    /// How many tokens may be repeated without it
    #[arg(long = "dry-allowed-length", value_name = "N", env = "QMESH_DRY_ALLOWED_LENGTH", default_value_t = DryRules::ALLOWED_LENGTH)]
    pub allowed_length: u32,
    /// How many last tokens are looked at; -1 for all
    #[arg(
        long = "dry-penalty-last-n", value_name = "N", env = "QMESH_DRY_PENALTY_LAST_N", default_value_t = i64::from(DryRules::WINDOW),
        allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX))
    )]
    pub window: i64,
    /// A text that ends a repetition; may be repeated [default: a line end, and each of : " *]
    #[arg(long = "dry-sequence-breaker", value_name = "TEXT", env = "QMESH_DRY_SEQUENCE_BREAKER")]
    pub breakers: Vec<String>,
}

impl DryArgs {
    /// What they mean to the mesh; nothing where they are off.
    ///
    /// # Errors
    /// Breakers that are too many, too long, or written in too many ways.
    pub fn read(&self, text: &TextModel) -> Result<Option<Dry>, Failure> {
        let usual = DryRules::default();
        let rules = DryRules {
            multiplier: self.multiplier,
            base: self.base,
            allowed_length: self.allowed_length,
            window: u32::try_from(self.window).ok(),
            breakers: if self.breakers.is_empty() { usual.breakers } else { self.breakers.clone() },
        };
        text.dry(&rules).map_err(|error| Failure::usage(format!("--dry-sequence-breaker: {error}")))
    }
}

fn multiplier(text: &str) -> Result<f32, String> {
    within(text, 0.0, DryRules::MOST)
}

fn base(text: &str) -> Result<f32, String> {
    within(text, 1.0, DryRules::MOST)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::text::fake::{CONTEXT, byte, model};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        dry: DryArgs,
    }

    fn read(line: &str) -> Result<Option<Dry>, Failure> {
        let words = ["run"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).expect("sound flags").dry.read(&model())
    }

    #[test]
    fn dry_is_off_until_it_is_asked_for() {
        assert_eq!(read("--dry-base 2"), Ok(None));
        let dry = read("--dry-multiplier 0.8 --dry-penalty-last-n -1 --dry-sequence-breaker o").unwrap().expect("on");
        assert_eq!((dry.multiplier, dry.base, dry.allowed_length), (0.8, 1.75, 2));
        assert_eq!(dry.window as usize, CONTEXT);
        assert!(dry.breakers.allows(byte(b'o')) && !dry.breakers.allows(byte(b':')));
        let usual = read("--dry-multiplier 0.8").unwrap().expect("on");
        assert_eq!(usual.window, 64);
        assert!(usual.breakers.allows(byte(b':')));
    }

    #[test]
    fn breakers_that_cannot_be_are_refused() {
        let long = "x".repeat(41);
        let refused = read(&format!("--dry-multiplier 1 --dry-sequence-breaker {long}")).expect_err("41 bytes");
        assert!(refused.text.contains("--dry-sequence-breaker"), "{refused:?}");
    }
}
