//! Ids of calls.

/// A new one: nobody has had it, and nobody can guess it. `call_` and 24 letters and digits, as OpenAI's are.
pub(crate) fn new(_: usize) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut random = [0; 48];
    getrandom::fill(&mut random).expect("the system's random source, without which no TLS works either");
    let digit = |pair: &[u8]| {
        let number = usize::from(u16::from_le_bytes([pair[0], pair[1]]));
        char::from(ALPHABET[number % ALPHABET.len()])
    };
    let digits: String = random.chunks_exact(2).map(digit).collect();
    format!("call_{digits}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn ids_differ_and_look_like_openais() {
        let ids: HashSet<String> = (0..1000).map(super::new).collect();
        assert_eq!(ids.len(), 1000);
        let sound = |id: &String| {
            let digits = id.strip_prefix("call_").unwrap_or_default();
            digits.len() == 24 && digits.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        assert!(ids.iter().all(sound), "{ids:?}");
    }
}
