//! From llama.cpp's GBNF to Lark.
//!
//! A rule of the one becomes a rule of the other, and each text or class of characters in it a terminal of its own. Where two
//! terminals match the same beginning the longest one is taken, as Lark does: then fewer texts may come than GBNF allows, and
//! none that it does not.

use std::{collections::BTreeMap, fmt::Write, iter::Peekable, str::Chars};

use thiserror::Error;

use super::quoted;

/// Why a text is no GBNF.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(super) enum GbnfError {
    #[error("line {line}: {what}")]
    Syntax { line: usize, what: String },
    #[error("there is no rule 'root'")]
    NoRoot,
    #[error("rule '{name}' is used and never written")]
    Missing { name: String },
}

/// The same grammar in Lark.
///
/// # Errors
/// What is no GBNF.
pub(super) fn to_lark(gbnf: &str) -> Result<String, GbnfError> {
    let tokens = tokens(gbnf)?;
    let mut rules: BTreeMap<&str, (usize, &[Placed])> = BTreeMap::new();
    let begins = |at: &usize| matches!(tokens[*at..], [(_, Token::Name(_)), (_, Token::Is), ..]);
    let starts: Vec<usize> = (0..tokens.len()).filter(begins).collect();
    if let Some((line, _)) = tokens.first().filter(|_| starts.first() != Some(&0)) {
        return Err(GbnfError::Syntax { line: *line, what: "a rule is written 'name ::= …'".to_owned() });
    }
    for (number, &start) in starts.iter().enumerate() {
        let end = starts.get(number + 1).copied().unwrap_or(tokens.len());
        let (line, Token::Name(name)) = &tokens[start] else { continue };
        if rules.insert(name, (number, &tokens[start + 2..end])).is_some() {
            return Err(GbnfError::Syntax { line: *line, what: format!("rule '{name}' is written twice") });
        }
    }
    let Some((root, _)) = rules.get("root") else { return Err(GbnfError::NoRoot) };
    let mut lark = format!("start: r{root}\n");
    for (number, body) in rules.values() {
        let _ = writeln!(lark, "r{number}: {}", alternatives(body, &rules)?);
    }
    Ok(lark)
}

/// A token and its line.
type Placed = (usize, Token);

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Is,
    /// What Lark writes in the same way: a text, a class of characters, a repetition.
    Same(String),
    Or,
    Open,
    Close,
}

/// The body of a rule. Lark wants something on each side of a bar.
fn alternatives(body: &[Placed], rules: &BTreeMap<&str, (usize, &[Placed])>) -> Result<String, GbnfError> {
    let mut out = String::new();
    let mut depth = 0_usize;
    let mut is_empty = true;
    let mut last_line = 0;
    for (line, token) in body {
        last_line = *line;
        let wrong = |what: &str| GbnfError::Syntax { line: *line, what: what.to_owned() };
        if is_empty && matches!(token, Token::Or | Token::Close) {
            out.push_str("\"\" ");
        }
        match token {
            Token::Name(name) => {
                let (number, _) = rules.get(name.as_str()).ok_or_else(|| GbnfError::Missing { name: name.clone() })?;
                let _ = write!(out, "r{number} ");
            }
            Token::Same(text) if text.starts_with(['*', '+', '?', '{']) => {
                if is_empty {
                    return Err(wrong("there is nothing to repeat"));
                }
                out.truncate(out.trim_end().len());
                let _ = write!(out, "{text} ");
            }
            Token::Same(text) => {
                let _ = write!(out, "{text} ");
            }
            Token::Or => out.push_str("| "),
            Token::Open => {
                depth += 1;
                out.push_str("( ");
            }
            Token::Close => {
                depth = depth.checked_sub(1).ok_or_else(|| wrong("a parenthesis too many"))?;
                out.push_str(") ");
            }
            Token::Is => return Err(wrong("'::=' is no part of a rule's body")),
        }
        is_empty = matches!(token, Token::Or | Token::Open);
    }
    if depth > 0 {
        return Err(GbnfError::Syntax { line: last_line, what: "a parenthesis is not closed".to_owned() });
    }
    if is_empty {
        out.push_str("\"\"");
    }
    Ok(out.trim_end().to_owned())
}

fn tokens(gbnf: &str) -> Result<Vec<Placed>, GbnfError> {
    let mut chars = gbnf.chars().peekable();
    let mut tokens = Vec::new();
    let mut line = 1;
    while let Some(c) = chars.next() {
        let here = line;
        let wrong = |what: String| GbnfError::Syntax { line: here, what };
        let token = match c {
            '\n' => {
                line += 1;
                continue;
            }
            ' ' | '\t' | '\r' => continue,
            '#' => {
                while chars.next_if(|c| *c != '\n').is_some() {}
                continue;
            }
            '|' => Token::Or,
            '(' => Token::Open,
            ')' => Token::Close,
            '.' => Token::Same("/(?s:.)/".to_owned()),
            '*' | '+' | '?' => Token::Same(c.to_string()),
            '{' => {
                Token::Same(repetition(&mut chars).ok_or_else(|| wrong("a repetition is {n}, {n,} or {n,m}".into()))?)
            }
            '"' => Token::Same(quoted(&text(&mut chars).map_err(wrong)?)),
            '[' => Token::Same(class(&mut chars).map_err(wrong)?),
            ':' if chars.next_if_eq(&':').is_some() && chars.next_if_eq(&'=').is_some() => Token::Is,
            c if is_word(c) => {
                let mut name = c.to_string();
                while let Some(c) = chars.next_if(|c| is_word(*c)) {
                    name.push(c);
                }
                Token::Name(name)
            }
            c => return Err(wrong(format!("'{c}' means nothing here"))),
        };
        tokens.push((here, token));
    }
    Ok(tokens)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// What stands between the braces of a repetition.
fn repetition(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    let inside: String = std::iter::from_fn(|| chars.next_if(|c| *c != '}' && *c != '\n')).collect();
    chars.next_if_eq(&'}')?;
    let number = |text: &str| text.trim().parse::<u16>().ok();
    match inside.split_once(',') {
        None => number(&inside).filter(|n| *n > 0).map(|n| format!("{{{n}}}")),
        Some((least, most)) if most.trim().is_empty() => number(least).map(|least| format!("{{{least},}}")),
        Some((least, most)) => {
            let (least, most) = (number(if least.trim().is_empty() { "0" } else { least })?, number(most)?);
            (most > 0 && least <= most).then(|| format!("{{{least},{most}}}"))
        }
    }
}

/// A text up to its closing quote.
fn text(chars: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    let mut text = String::new();
    loop {
        match chars.next() {
            None | Some('\n') => return Err("a quote is not closed".to_owned()),
            Some('"') => return Ok(text),
            Some('\\') => text.push(escaped(chars)?),
            Some(c) => text.push(c),
        }
    }
}

/// A class of characters up to its closing bracket, as a regular expression.
fn class(chars: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    let mut class = if chars.next_if_eq(&'^').is_some() { "/[^".to_owned() } else { "/[".to_owned() };
    let opened = class.len();
    let one = |chars: &mut Peekable<Chars<'_>>| match chars.next() {
        None | Some('\n') => Err("a bracket is not closed".to_owned()),
        Some('\\') => escaped(chars),
        Some(c) => Ok(c),
    };
    let code = |c: char| format!("\\x{{{:X}}}", u32::from(c));
    while chars.next_if_eq(&']').is_none() {
        let first = one(chars)?;
        class.push_str(&code(first));
        if chars.peek() != Some(&'-') {
            continue;
        }
        chars.next();
        // A bar at the end is itself.
        if chars.peek() == Some(&']') {
            class.push_str(&code('-'));
        } else {
            let last = one(chars)?;
            if first > last {
                return Err(format!("'{first}' to '{last}' is no range"));
            }
            let _ = write!(class, "-{}", code(last));
        }
    }
    match class.len() == opened {
        true if class.ends_with('^') => Ok("/(?s:.)/".to_owned()),
        true => Err("a class has no characters".to_owned()),
        false => Ok(class + "]/"),
    }
}

/// The character that stands for what follows a backslash.
fn escaped(chars: &mut Peekable<Chars<'_>>) -> Result<char, String> {
    let digits = match chars.next() {
        Some('n') => return Ok('\n'),
        Some('r') => return Ok('\r'),
        Some('t') => return Ok('\t'),
        Some('x') => 2,
        Some('u') => 4,
        Some('U') => 8,
        Some(c @ ('"' | '\\' | '[' | ']' | '-' | '^' | '/' | '\'')) => return Ok(c),
        Some(c) => return Err(format!("'\\{c}' means nothing here")),
        None => return Err("a backslash at the end".to_owned()),
    };
    let code: String = chars.by_ref().take(digits).collect();
    let valid = u32::from_str_radix(&code, 16).ok().filter(|_| code.len() == digits);
    valid.and_then(char::from_u32).ok_or_else(|| format!("'{code}' is no character's number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_rules() {
        let gbnf = "# a list\nroot ::= item (\",\" ws item)* # to the end\nitem ::= [a-z\\]\\-]+ | \"\\\"\" [^\"\\n-]{2,4} \"\\x41\"\nws ::= | \" \"\n  | .";
        let lark = "start: r0\nr1: /[\\x{61}-\\x{7A}\\x{5D}\\x{2D}]/+ | \"\\\"\" /[^\\x{22}\\x{A}\\x{2D}]/{2,4} \"A\"\n\
                    r0: r1 ( \",\" r2 r1 )*\nr2: \"\" | \" \" | /(?s:.)/\n";
        assert_eq!(to_lark(gbnf).unwrap(), lark);
    }

    #[test]
    fn what_is_no_gbnf_is_refused_by_its_line() {
        for (gbnf, error) in [
            ("", "there is no rule 'root'"),
            ("item ::= \"a\"", "there is no rule 'root'"),
            ("root ::= item", "rule 'item' is used and never written"),
            ("root ::= \"a\"\nroot ::= \"b\"", "line 2: rule 'root' is written twice"),
            ("\"a\" root ::= \"b\"", "line 1: a rule is written 'name ::= …'"),
            ("root ::= (\"a\"", "line 1: a parenthesis is not closed"),
            ("root ::= \"a\")", "line 1: a parenthesis too many"),
            ("root ::=\n *", "line 2: there is nothing to repeat"),
            ("root ::= \"a", "line 1: a quote is not closed"),
            ("root ::= [a", "line 1: a bracket is not closed"),
            ("root ::= []", "line 1: a class has no characters"),
            ("root ::= [z-a]", "line 1: 'z' to 'a' is no range"),
            ("root ::= \"\\q\"", "line 1: '\\q' means nothing here"),
            ("root ::= \"\\xZ\"", "line 1: 'Z\"' is no character's number"),
            ("root ::= \"a\"{3,1}", "line 1: a repetition is {n}, {n,} or {n,m}"),
            ("root ::= \"a\" ::= \"b\"", "line 1: '::=' is no part of a rule's body"),
            ("root ::= <5>", "line 1: '<' means nothing here"),
        ] {
            assert_eq!(to_lark(gbnf).unwrap_err().to_string(), error, "{gbnf}");
        }
    }
}
