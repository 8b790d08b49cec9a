//! Grammars with a vocabulary of words, and against hostility.

use realm_deps::grammar::{GrammarEnv, GrammarMatcher};
use realm_deps::Failure;
use std::time::{Duration, Instant};

const SCHEMA: i32 = 0;
const REGEX: i32 = 1;
const LARK: i32 = 2;
const OBJECT: i32 = 3;

/// All bytes, then some words, then <end> and <tool>.
fn words() -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
    words.extend(["{\"", "\": ", "true", "name", "12", "\n\n\n\n", "é", ""].map(|w| w.as_bytes().to_vec()));
    words.extend([b"<end>".to_vec(), b"<tool>".to_vec()]);
    words
}

fn env() -> GrammarEnv {
    let words = words();
    let mut special = vec![0; words.len()];
    let count = words.len();
    special[count - 2..].fill(1);
    GrammarEnv::new(words, &special, &[count as u32 - 2]).unwrap()
}

fn allowed(matcher: &mut GrammarMatcher) -> Vec<Vec<u8>> {
    let words = words();
    let mut mask = vec![!0; words.len().div_ceil(32)];
    matcher.mask(&mut mask).unwrap();
    words.into_iter().enumerate().filter(|(i, _)| mask[i / 32] >> (i % 32) & 1 == 1).map(|(_, w)| w).collect()
}

fn feed(matcher: &mut GrammarMatcher, text: &str) -> Result<(), Failure> {
    text.bytes().try_for_each(|b| matcher.consume(b.into()))
}

#[test]
fn a_regex_allows_the_tokens_that_continue_it() {
    let mut matcher = env().matcher(REGEX, "(tr|n)[a-z]+|1[0-9]").unwrap();
    let words = allowed(&mut matcher);
    let texts: Vec<_> = words.iter().map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    assert_eq!(texts, ["1", "n", "t", "true", "name", "12"]);
    assert!(matcher.consume(b'2'.into()).is_err());
    feed(&mut matcher, "19").unwrap();
    assert_eq!(allowed(&mut matcher), [b"<end>"]);
}

#[test]
fn control_tokens_pass_only_where_a_grammar_names_them() {
    let tool = words().len() as u32 - 1;
    let mut matcher = env().matcher(REGEX, "<tool>.*").unwrap();
    assert!(matcher.consume(tool).is_err());
    feed(&mut matcher, "<tool>").unwrap();
    let mut matcher = env().matcher(LARK, "start: <tool> /[a-z]+/").unwrap();
    assert_eq!(allowed(&mut matcher), [b"<tool>"]);
    matcher.consume(tool).unwrap();
    feed(&mut matcher, "ok").unwrap();
}

#[test]
fn json_cannot_be_filled_with_white_space() {
    let mut matcher = env().matcher(OBJECT, "").unwrap();
    feed(&mut matcher, "{\n\n    ").unwrap();
    assert!(feed(&mut matcher, "\n\n").is_err());
    feed(&mut matcher, "\"a\": [1, true, null, {\"b\": \"c\\n\"}]}").unwrap();
    assert_eq!(allowed(&mut matcher), [b"<end>"]);
}

#[test]
fn a_recursive_schema_is_followed() {
    let schema = r##"{"$defs":{"t":{"type":"object","properties":{"v":{"type":"integer"},
        "l":{"$ref":"#/$defs/t"}},"required":["v"],"additionalProperties":false}},"$ref":"#/$defs/t"}"##;
    let mut matcher = env().matcher(SCHEMA, schema).unwrap();
    feed(&mut matcher, r#"{"v":1,"l":{"v":2,"l":{"v":3}}}"#).unwrap();
    assert_eq!(allowed(&mut matcher), [b"<end>"]);
}

#[test]
fn a_hostile_grammar_is_refused_or_costs_little() {
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let wide = format!("{{\"enum\":[{}]}}", (0..60_000).map(|i| format!("\"v{i}\"")).collect::<Vec<_>>().join(","));
    let ambiguous = "start: a a a a a a a a\na: (\"x\" | \"xx\" | a a)*";
    let any_of = (0..12).fold("{\"type\":\"string\"}".to_string(), |inner, i| {
        format!("{{\"anyOf\":[{{\"properties\":{{\"p{i}\":{inner}}}}},{{\"properties\":{{\"q\":{inner}}}}}]}}")
    });
    let all_of = format!("{{\"allOf\":[{}]}}", vec![r#"{"pattern":"(a|b)*a(a|b){12}"}"#; 8].join(","));
    for (kind, text) in [
        (REGEX, "((a{1,2000}){1,2000}){1,2000}"),
        (REGEX, "(a|b)*a(a|b){2000}"),
        (REGEX, "(((((((((a*)*)*)*)*)*)*)*)*)*b"),
        (REGEX, "[\\p{L}]{5000,}"),
        (LARK, ambiguous),
        (LARK, "start: start start | start"),
        (LARK, "start: a\na: b\nb: a"),
        (SCHEMA, &deep),
        (SCHEMA, &wide),
        (SCHEMA, &any_of),
        (SCHEMA, &all_of),
        (SCHEMA, r##"{"$ref":"#"}"##),
        (SCHEMA, r#"{"$ref":"http://127.0.0.1:1/x"}"#),
        (SCHEMA, r#"{"type":"array","minItems":1000000000,"items":{"type":"string"}}"#),
        (SCHEMA, r#"{"type":"string","minLength":1000000000}"#),
        (SCHEMA, r#"{"type":"integer","minimum":-1e300,"maximum":1e300,"multipleOf":0.0000001}"#),
        (SCHEMA, r#"{"type":"string","pattern":"^((a+)+)+$"}"#),
        (SCHEMA, "false"),
        (SCHEMA, "[]"),
    ] {
        let shown: String = text.chars().take(60).collect();
        let start = Instant::now();
        let outcome = env().matcher(kind, text).and_then(|mut matcher| {
            let mut mask = vec![0; words().len().div_ceil(32)];
            for byte in b"aaaaaaaabbbbxxxxxxxxxxxxxxxx" {
                matcher.mask(&mut mask)?;
                let _ = matcher.consume((*byte).into());
            }
            Ok(())
        });
        let took = start.elapsed();
        println!("{took:>12.3?}  {shown}  {}", outcome.as_ref().err().map_or("", |f| f.message()));
        assert!(!matches!(outcome, Err(Failure::Internal(_))), "{shown}: {outcome:?}");
        assert!(took < Duration::from_secs(8), "{shown}: {took:?}");
    }
}
