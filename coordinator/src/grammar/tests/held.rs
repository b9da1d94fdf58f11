//! Texts that are free but for the arguments of calls.

use super::*;

/// An answer in which `order` is called by its schema, where a mark is before it.
fn orders() -> HeldCalls {
    let text = |text: &str| LeadPiece::Text(text.to_owned());
    let lead = Lead::new(vec![text("\"order\""), LeadPiece::Space, text(":")], LeadPlace::InCalls);
    HeldCalls { calls: vec![(lead, HeldArguments::Json(order()))], marks: vec!["<call>"], thoughts: None }
}

impl Known {
    fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, Specials::Plain, Affixes::None).unwrap()
    }

    /// Goes along a walk at random for as long as it is held. Drafts of what comes are tried at every place.
    fn held_text(&self, walk: &mut GrammarWalk, random: &mut Random) -> String {
        let (mut ids, vocabulary) = (Vec::new(), self.tokenizer.vocab_len() as u32);
        while !walk.is_free() && ids.len() < 400 {
            let mut draft: Vec<u32> = ids.iter().rev().take(3).rev().copied().collect();
            let masks = walk.masks(&mut draft).unwrap();
            assert_eq!(masks.len(), draft.len() + 1);
            assert!(!self.ends.iter().any(|end| masks[0].allows(*end)), "arguments are no end");
            let allowed: Vec<u32> = (0..vocabulary).filter(|id| masks[0].allows(*id)).collect();
            let drawn = (0..4).map(|_| allowed[random.below(allowed.len())]);
            let token = drawn.min_by_key(|id| self.tokenizer.bytes(*id).len()).unwrap();
            walk.advance(token).unwrap();
            ids.push(token);
        }
        self.tokenizer.decode(&ids, ControlTokens::Hide)
    }
}

#[test]
fn arguments_are_held_in_a_text_that_is_free() {
    for known in [&*QWEN2, &*SPM] {
        let grammar = known.compiler.compile(&Grammar::held(orders()).unwrap()).unwrap();
        for seed in 1..4 {
            let (mut walk, mut random) = (grammar.start(), Random(seed));
            for said in ["No \"order\": here. <call>{\"order\" :", "}, {\"order\":"] {
                for id in known.ids(said) {
                    assert!(walk.is_free(), "{said}");
                    assert_eq!(walk.masks(&mut vec![]).unwrap(), vec![]);
                    walk.advance(id).unwrap();
                }
                assert!(!walk.is_free(), "{said}");
                let text = known.held_text(&mut walk, &mut random);
                assert!(is_order(&text), "{text}");
            }
            assert!(known.ends.iter().all(|end| walk.mask().unwrap().allows(*end)));
            walk.advance(known.ends[0]).unwrap();
            assert!(walk.advance(known.ids("x")[0]).is_err() && walk.masks(&mut vec![]).is_err(), "it has ended");
        }
    }
}

#[test]
fn drafts_stop_before_what_is_held_begins_or_ends() {
    let grammar = QWEN2.compiler.compile(&Grammar::held(orders()).unwrap()).unwrap();
    let (mut walk, said) = (grammar.start(), QWEN2.ids("So: <call>{\"order\":"));
    let mut draft = said.clone();
    assert_eq!(walk.masks(&mut draft).unwrap(), vec![]);
    assert_eq!(draft, said[..said.len() - 1]);
    said.iter().for_each(|id| walk.advance(*id).unwrap());
    let rest = QWEN2.ids("{\"id\": 1, \"paid\": true, \"note\": null, \"lines\": [{\"kind\": \"b\"}]}");
    let mut draft = [&rest[..], &QWEN2.ids(" and more")].concat();
    let masks = walk.masks(&mut draft).unwrap();
    assert_eq!((&draft[..], masks.len()), (&rest[..rest.len() - 1], rest.len()));
    rest.iter().for_each(|id| walk.advance(*id).unwrap());
    assert!(walk.is_free());
}

#[test]
fn what_cannot_be_held_is_refused() {
    let mut held = orders();
    held.calls[0].1 = HeldArguments::Json(json!({"type": "what"}));
    assert!(matches!(QWEN2.compiler.compile(&Grammar::held(held).unwrap()), Err(GrammarError::Refused { .. })));
    let mut long = orders();
    long.calls[0].1 = HeldArguments::Json(json!({"description": "x".repeat(BYTES)}));
    assert!(matches!(Grammar::held(long), Err(GrammarError::TooLong { .. })));
}
