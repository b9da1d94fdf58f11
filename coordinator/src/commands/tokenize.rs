//! `tokenize`: text to token ids, as JSON.

use std::io::{Read, stdin};

use anyhow::Context;
use qmesh_models::{
    gguf::Gguf,
    tokenizer::{Affixes, Specials, Tokenizer},
};
use serde_json::{Value, json};

use super::fetch;
use crate::{
    cli::{Failure, TokenizeArgs},
    model,
    render::output,
};

pub(super) fn tokenize(args: &TokenizeArgs) -> Result<(), Failure> {
    let path = fetch(&args.model)?;
    let gguf = Gguf::open(&path).map_err(|e| Failure::failed(e.to_string()))?;
    let tokenizer = model::tokenizer(&gguf, args.tokenizer.choice()).with_context(|| path.display().to_string())?;
    let text = match &args.text {
        Some(text) if text != "-" => text.clone(),
        Some(_) | None => read(stdin())?,
    };
    output::json(&tokens(&tokenizer, &text, args)?.to_string())?;
    Ok(())
}

/// Everything there is, as text.
fn read(input: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = input.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::failed(format!("cannot read standard input: {e}")))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(Failure::usage(format!("standard input has more than {TEXT_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        Failure::usage(format!("standard input is not UTF-8 from byte {valid} on"))
    })
}

fn tokens(tokenizer: &Tokenizer, text: &str, args: &TokenizeArgs) -> Result<Value, Failure> {
    let (specials, affixes) =
        if args.raw { (Specials::Plain, Affixes::None) } else { (Specials::Parse, Affixes::AsModel) };
    let ids = tokenizer.encode(text, specials, affixes).map_err(|e| Failure::failed(e.to_string()))?;
    if !args.pieces {
        return Ok(json!(ids));
    }
    // Half a character shows as U+FFFD.
    let piece = |id: u32| json!({"id": id, "text": String::from_utf8_lossy(tokenizer.bytes(id))});
    Ok(ids.into_iter().map(piece).collect())
}

/// Longer texts are no prompts.
const TEXT_BYTES_MAX: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use qmesh_models::{
        gguf::{GgufWriter, Strings},
        tokenizer::PretokenizerChoice,
    };

    use super::*;
    use crate::cli::TokenizerArgs;

    const OWN: PretokenizerChoice<'_> = PretokenizerChoice::FromModel;

    fn parse(writer: &GgufWriter) -> Gguf {
        let bytes = writer.to_bytes(|_, _| ());
        Gguf::parse(&bytes, bytes.len() as u64).unwrap()
    }

    /// A file with a vocabulary and nothing else: printable bytes, one merge and two control tokens.
    fn vocabulary(pre: &str) -> Gguf {
        let printable = ('!'..='~').map(String::from);
        let words = ["Ġ", "Hi", "<s>", "</s>"].map(str::to_owned);
        let tokens: Strings = printable.chain(words).collect();
        let types: Vec<i32> = (0..tokens.len()).map(|id| if id < tokens.len() - 2 { 1 } else { 3 }).collect();
        let writer = GgufWriter::new("llama")
            .set("tokenizer.ggml.model", "gpt2")
            .set("tokenizer.ggml.pre", pre)
            .set("tokenizer.ggml.tokens", tokens)
            .set("tokenizer.ggml.token_type", &types[..])
            .set("tokenizer.ggml.merges", ["H i"].into_iter().collect::<Strings>())
            .set("tokenizer.ggml.bos_token_id", 96_u32)
            .set("tokenizer.ggml.add_bos_token", true);
        parse(&writer)
    }

    #[test]
    fn a_vocabulary_alone_will_do() {
        let tokenizer = model::tokenizer(&vocabulary("gpt-2"), OWN).unwrap();
        let shown = |text: &str, raw, pieces| {
            let model = "vocabulary.gguf".parse().unwrap();
            let args = TokenizeArgs { model, text: None, raw, pieces, tokenizer: TokenizerArgs { pre: None } };
            tokens(&tokenizer, text, &args).unwrap().to_string()
        };
        assert_eq!(shown("Hi a</s>", false, false), "[96,95,94,64,97]");
        assert_eq!(shown("Hi</s>", true, false), "[95,27,14,82,29]");
        let pieces = r#"[{"id":96,"text":"<s>"},{"id":95,"text":"Hi"},{"id":94,"text":" "},{"id":97,"text":"</s>"}]"#;
        assert_eq!(shown("Hi </s>", false, true), pieces);
        assert_eq!(shown("", true, false), "[]");
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let empty = model::tokenizer(&parse(&GgufWriter::new("llama")), OWN).unwrap_err();
        assert!(empty.to_string().contains("the model has no tokenizer"), "{empty}");
        let unknown = model::tokenizer(&vocabulary("klingon"), OWN).context("a.gguf").unwrap_err();
        let [error, advice] = &Failure::from(unknown).lines()[..] else { panic!("two lines") };
        assert!(error.starts_with("error: a.gguf: tokenizer.ggml.pre \"klingon\" is not known;"), "{error}");
        assert_eq!(advice, "try: --pre NAME, with the name of the one that the model was trained with");
        assert!(model::tokenizer(&vocabulary("klingon"), PretokenizerChoice::Named("gpt-2")).is_ok());
    }

    #[test]
    fn standard_input_is_text() {
        assert_eq!(read("é\n".as_bytes()).unwrap(), "é\n");
        assert_eq!(read(&b"ab\xFF"[..]).unwrap_err().text, "standard input is not UTF-8 from byte 2 on");
    }
}
