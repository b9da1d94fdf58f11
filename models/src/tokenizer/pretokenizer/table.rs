//! Every known way to cut text into words, with the names that GGUF files have for it.
//!
//! The expressions are those of the models' own tokenizers.

use super::{
    CutKind,
    Pass::{self, Matches, Triplets},
    WholeWords,
};

macro_rules! contraction {
    () => {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    };
}

/// What follows words and numbers since GPT-4: punctuation with the line ends after it, line ends, other white space.
macro_rules! rest {
    () => {
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

/// Words that begin anew where a capital follows a small letter, each with `$suffix`.
macro_rules! cased_words {
    ($suffix:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix,
        )
    };
}

/// As `rest`, but slashes stay with the punctuation before them.
macro_rules! rest_with_slashes {
    () => {
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", rest!());
const QWEN2: &str = concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", rest!());
const QWEN35: &str = concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const UFAKZEKA: &str = concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", rest!());
const MINICPM5: &str = concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+", rest!());
const SEED_CODER: &str =
    concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",);
const BAILING: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
);
const EXAONE_MOE: &str = concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
);
/// Long runs of white space go in powers of two.
const JAIS2: &str = concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)",
    r"|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
);
const GPT4O: &str = concat!(cased_words!(concat!(contraction!(), "?")), r"|\p{N}{1,3}", rest_with_slashes!());
const TEKKEN: &str = concat!(cased_words!(""), r"|\p{N}", rest_with_slashes!());
const YOUTU: &str = concat!(cased_words!(concat!(contraction!(), "?")), r"|\p{N}", rest_with_slashes!());
const YOUTU_ASIAN: &str = concat!(
    r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，\u{3001}-\u{303F}\u{FE30}-\u{FE4F}]+|[ㄅ-ㄯ]+",
    r"|[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
);
const KIMI_K2: &str = concat!(
    r"\p{Han}+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    contraction!(),
    r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    contraction!(),
    r"?|\p{N}{1,3}",
    rest!(),
);
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const LINES: &str = r"[^\n]+|\n+";

const DEEPSEEK3_CJK: &str = r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";
const DEEPSEEK3: &str = concat!(
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const SPARK: &str = concat!(
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]",
    r"|\s+(?!\S)|\s+",
);
/// The scripts of East and South-East Asia.
const AFMOE_ASIAN: &str = concat!(
    r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{F900}-\u{FAFF}\u{3040}-\u{309F}\u{30A0}-\u{30FF}\u{FF65}-\u{FF9F}",
    r"\u{2F00}-\u{2FDF}\u{E40}-\u{E7F}\u{E80}-\u{EFF}\u{1780}-\u{17FF}\u{1000}-\u{109F}\u{AA60}-\u{AA7F}",
    r"\u{A9E0}-\u{A9FF}\u{AC00}-\u{D7AF}\u{1100}-\u{11FF}]+",
);
/// The letters with case that DeepSeek LLM lists, a subset of `\p{LC}`.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z\xB5\xC0-\xD6\xD8-\xF6\xF8-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}",
    r"\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}",
    r"\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}",
    r"\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}",
    r"\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}",
    r"\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}",
    r"\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}",
    r"\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}",
    r"\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}",
    r"\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}",
    r"\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}",
    r"\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
);
const DEEPSEEK_PUNCTUATION: &str = r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+";
const DEEPSEEK_CJK: &str = r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
const DEEPSEEK: &[Pass] = &[
    Matches(r"[\r\n]"),
    Matches(DEEPSEEK_LETTERS),
    Matches(DEEPSEEK_PUNCTUATION),
    Matches(r"\s+$"),
    Matches(DEEPSEEK_CJK),
    Matches(r"\p{N}+"),
];

/// Every way to cut, and the names that mean exactly the same.
pub(super) const KINDS: &[CutKind] = &[
    kind(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
        ],
        &[Matches(GPT2)],
    ),
    kind(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[Matches(r"\p{N}"), Matches(GPT2)],
    ),
    kind(
        &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open", "kormo", "grok-2"],
        &[Matches(QWEN2)],
    ),
    kind(&["qwen35"], &[Matches(QWEN35)]),
    kind(
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        &[Matches(LLAMA3)],
    )
    .keeping_whole_words()
    .with_bos(),
    kind(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[Matches(LLAMA3)]),
    kind(&["glm4", "glm5"], &[Matches(LLAMA3)]).keeping_whole_words(),
    kind(&["minicpm5"], &[Matches(r"\p{N}{1,3}"), Matches(MINICPM5)]).keeping_whole_words(),
    kind(&["jais-2"], &[Matches(JAIS2)]),
    kind(&["tekken"], &[Matches(TEKKEN)]).keeping_whole_words().with_bos(),
    kind(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[Matches(GPT4O)]),
    kind(&["tiny_aya", "cohere2moe"], &[Matches(r"\d+\b"), Triplets, Matches(GPT4O)]),
    kind(&["youtu"], &[Matches(YOUTU_ASIAN), Matches(YOUTU)]).keeping_whole_words(),
    kind(&["kimi-k2"], &[Matches(KIMI_K2)]),
    kind(&["seed-coder"], &[Matches(SEED_CODER)]),
    kind(&["ufakzeka"], &[Matches(UFAKZEKA)]),
    kind(&["laguna"], &[Matches(LINES), Matches(QWEN2)]),
    kind(&["bailingmoe", "bailingmoe2", "llada-moe"], &[Matches(BAILING)]),
    kind(&["exaone-moe"], &[Matches(EXAONE_MOE)]),
    kind(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[Matches(r"\p{N}{1,3}"), Matches(DEEPSEEK3_CJK), Matches(DEEPSEEK3)],
    ),
    kind(&["spark2_5"], &[Matches(r"\p{N}{1,3}"), Matches(DEEPSEEK3_CJK), Matches(SPARK), Matches(r"\p{N}")]),
    kind(&["afmoe"], &[Matches(r"\p{N}+"), Triplets, Matches(AFMOE_ASIAN), Matches(DEEPSEEK3)]),
    kind(&["deepseek-llm"], DEEPSEEK),
    kind(
        &["deepseek-coder"],
        &[Matches(r"[\r\n]"), Matches(r"\s?\p{L}+"), Matches(r"\s?\p{P}+"), Matches(DEEPSEEK_CJK), Matches(r"\p{N}")],
    ),
    kind(&["superbpe"], &[Matches(r"\p{N}+"), Triplets]),
    kind(&["falcon"], &[Matches(r"[\p{P}$+<=>^~|`]+"), Matches(GPT2), Matches("[0-9][0-9][0-9]")]),
    kind(&["bloom", "poro-chat", "gpt3-finnish"], &[Matches(BLOOM)]),
    kind(&["viking"], &[Matches(BLOOM), Matches(r"\p{N}")]),
    kind(
        &["chameleon"],
        &[
            Matches("<sentinel:[0-9]+>"),
            Matches("IMGIMG[A-I]{1,4}Z"),
            Matches(r"[\t\n]|    |  "),
            Matches(r"\p{N}"),
            Matches(r"[\p{P}!-/:-@\[-`{-~]"),
            Matches(GPT2),
        ],
    )
    .with_bos(),
    kind(&["default"], &[Matches(r"[\p{P}$+<=>^~|]+"), Matches(GPT2), Matches(r"\p{N}+"), Matches("[0-9][0-9][0-9]")]),
];

const fn kind(names: &'static [&'static str], passes: &'static [Pass]) -> CutKind {
    CutKind { names, passes, whole_words: WholeWords::Merge, add_bos: false }
}

impl CutKind {
    const fn keeping_whole_words(self) -> Self {
        Self { whole_words: WholeWords::Keep, ..self }
    }

    const fn with_bos(self) -> Self {
        Self { add_bos: true, ..self }
    }
}
