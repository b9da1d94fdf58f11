//! A vocabulary of any size that tokenizes every text: GPT-2's bytes, a few merges, and words that only a model says.

use anyhow::{Result, ensure};
use qmesh_models::gguf::{GgufWriter, Strings};

use super::dimensions::RandomFamily;

/// Puts a tokenizer of `count` tokens into the file.
///
/// # Errors
/// There are fewer than its fixed tokens need.
pub(super) fn set(writer: GgufWriter, family: RandomFamily, count: usize) -> Result<GgufWriter> {
    ensure!(count >= VOCAB_MIN, "a vocabulary has at least {VOCAB_MIN} tokens, not {count}");
    let tokens: Vec<String> = tokens(count);
    let kinds: Vec<i32> = (0..count).map(|id| if id < count - CONTROL.len() { NORMAL } else { STEERING }).collect();
    let merges: Strings = MERGES.iter().map(|(left, right)| format!("{left} {right}")).collect();
    let begin = u32::try_from(count - CONTROL.len())?;
    let (pre, begins) = match family {
        RandomFamily::Llama => ("llama-bpe", true),
        RandomFamily::Qwen2 | RandomFamily::Qwen3 | RandomFamily::Qwen3moe => ("qwen2", false),
        RandomFamily::GptOss => ("gpt-4o", false),
        RandomFamily::Deepseek2 | RandomFamily::Deepseek32 => ("deepseek-v3", true),
    };
    Ok(writer
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", pre)
        .set("tokenizer.ggml.tokens", tokens.into_iter().collect::<Strings>())
        .set("tokenizer.ggml.token_type", kinds.as_slice())
        .set("tokenizer.ggml.merges", merges)
        .set("tokenizer.ggml.bos_token_id", begin)
        .set("tokenizer.ggml.eos_token_id", begin + 1)
        .set("tokenizer.ggml.add_bos_token", begins)
        .set("tokenizer.chat_template", CHAT_TEMPLATE))
}

const VOCAB_MIN: usize = 512;
/// ggml's numbers of normal and of control tokens.
const NORMAL: i32 = 1;
const STEERING: i32 = 3;
/// The last tokens: one begins a text, one ends it.
const CONTROL: [&str; 2] = ["<|begin|>", "<|endoftext|>"];
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
/// The most important first. Each of the two is a byte or comes of an earlier one; `Ġ` is a space.
const MERGES: [(&str, &str); 19] = [
    ("Ġ", "t"),
    ("Ġ", "a"),
    ("h", "e"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġ", "s"),
    ("a", "t"),
    ("Ġ", "w"),
    ("Ġ", "o"),
    ("n", "d"),
    ("o", "r"),
    ("i", "s"),
    ("e", "n"),
    ("Ġ", "c"),
    ("in", "g"),
    ("Ġa", "nd"),
];

fn tokens(count: usize) -> Vec<String> {
    let mut tokens: Vec<String> = (0..=255).map(|byte| spelled(byte).to_string()).collect();
    tokens.extend(MERGES.iter().map(|(left, right)| format!("{left}{right}")));
    // No merges lead to these. What a model of random weights says is mostly made of them.
    tokens.extend((tokens.len()..count - CONTROL.len()).map(|id| format!("Ġw{id}")));
    tokens.extend(CONTROL.map(String::from));
    tokens
}

/// The character that stands for a byte: itself where it can be seen, one of those from 256 on otherwise.
fn spelled(byte: u8) -> char {
    let seen = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if seen(byte) {
        return char::from(byte);
    }
    let unseen = (0..byte).filter(|&other| !seen(other)).count() as u32;
    char::from_u32(256 + unseen).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use qmesh_models::{
        gguf::Gguf,
        tokenizer::{Affixes, ControlTokens, PretokenizerChoice, Specials, Tokenizer, Vocabulary},
    };

    use super::*;

    #[test]
    fn every_text_comes_back() {
        let writer = set(GgufWriter::new("llama"), RandomFamily::Llama, 600).unwrap();
        let gguf = Gguf::parse(&writer.header(), writer.file_bytes()).unwrap();
        let vocabulary = Vocabulary::from_gguf(&gguf).unwrap();
        assert_eq!(vocabulary.tokens.len(), 600);
        let tokenizer = Tokenizer::new(vocabulary, PretokenizerChoice::FromModel).unwrap();
        let encode = |text: &str| tokenizer.encode(text, Specials::Plain, Affixes::AsModel).unwrap();
        for text in ["the thing and the other", "naïve — 日本語\n\t\0", "<|endoftext|>"] {
            assert_eq!(tokenizer.decode(&encode(text)[1..], ControlTokens::Show), text);
        }
        assert_eq!(encode(" the")[0], 598, "a text begins with the token for it");
        assert_eq!(encode(" the").len(), 2, "merges lead to a word");
    }

    #[test]
    fn tokens_differ_from_each_other() {
        let mut tokens = tokens(2000);
        tokens.sort();
        tokens.dedup();
        assert_eq!(tokens.len(), 2000);
        assert!(set(GgufWriter::new("llama"), RandomFamily::Llama, 511).is_err());
    }
}
