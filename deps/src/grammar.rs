//! Constrained decoding: llguidance behind the functions of `realm_deps.h`, which documents them.

use crate::{borrow, borrow_text, guard, hand_out, Failure};
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{json, Value};
use std::ffi::{c_char, c_int};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

const MAX_GRAMMAR_BYTES: usize = 1 << 20;

/// A trie node has 22 bits for its subtree's size.
const MAX_TOKENS: u32 = 1 << 21;
/// ... and 10 bits for its depth, less the marker of special tokens.
const MAX_TOKEN_BYTES: u32 = 1000;

/// Between the parts of JSON: one blank, or a line break with its indentation. Without a bound a model
/// that is unsure what to write can write white space for ever (llama.cpp's grammars have this one).
const JSON_WHITESPACE: &str = r" |\n{1,2}[ \t]{0,20}";

pub struct GrammarEnv {
    factory: Arc<ParserFactory>,
    token_count: usize,
}

pub struct GrammarMatcher {
    matcher: Matcher,
    token_count: usize,
}

/// llguidance says in its text alone whether a limit was reached.
fn failure_of(message: String) -> Failure {
    const LIMIT_WORDS: [&str; 6] = ["too large", "too many", "too complex", "limit", "fuel", "exceed"];
    let first = match message.lines().next().unwrap_or_default().trim() {
        "NoExtensionBias" => "no text at all satisfies the grammar".to_string(),
        first => first.to_string(),
    };
    if first.starts_with("panic: ") {
        Failure::Internal(first)
    } else if LIMIT_WORDS.iter().any(|word| first.to_lowercase().contains(word)) {
        Failure::TooLarge(first)
    } else {
        Failure::Invalid(first)
    }
}

/// Tighter than llguidance's defaults where those allow hundreds of megabytes: a state takes up to
/// 2 kB, so these end at about 60 MB for the worst grammar.
fn limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 30_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

impl GrammarEnv {
    pub fn new(mut words: Vec<Vec<u8>>, special: &[u8], eos: &[u32]) -> Result<GrammarEnv, Failure> {
        if words.is_empty() || eos.is_empty() {
            return Err(Failure::Invalid("a tokenizer has tokens and an end-of-sequence token".into()));
        }
        if let Some(bad) = eos.iter().find(|&&t| t as usize >= words.len()) {
            return Err(Failure::Invalid(format!(
                "end-of-sequence token {bad} is not one of {} tokens",
                words.len()
            )));
        }
        // A marker that is no UTF-8 keeps ordinary grammars away from control tokens.
        for (word, _) in words.iter_mut().zip(special).filter(|(w, &s)| s != 0 && !w.is_empty()) {
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        let token_count = words.len();
        let info = TokRxInfo::new(token_count as u32, eos[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(eos);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new(
            &env,
            InferenceCapabilities::default(),
            &llguidance::earley::SlicedBiasComputer::general_slices(),
        )
        .map_err(|e| failure_of(e.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(GrammarEnv { factory: Arc::new(factory), token_count })
    }

    pub fn matcher(&self, kind: c_int, text: &str) -> Result<GrammarMatcher, Failure> {
        let grammar = match kind {
            0 => TopLevelGrammar::from_json_schema(schema_of(text)?),
            1 => TopLevelGrammar::from_regex(text),
            2 => TopLevelGrammar::from_lark(text.to_string()),
            3 => TopLevelGrammar::from_json_schema(schema_of(r#"{"type":"object"}"#)?),
            _ => return Err(Failure::Invalid(format!("there is no grammar kind {kind}"))),
        };
        let parser = self
            .factory
            .create_parser_from_init_default(GrammarInit::Serialized(grammar))
            .map_err(|e| failure_of(e.to_string()))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(error) => Err(failure_of(error)),
            None => Ok(GrammarMatcher { matcher, token_count: self.token_count }),
        }
    }
}

/// The schema with our rule for white space, unless it brings its own ("x-guidance").
fn schema_of(text: &str) -> Result<Value, Failure> {
    let mut schema: Value = serde_json::from_str(text)
        .map_err(|e| Failure::Invalid(format!("the JSON schema is not JSON: {e}")))?;
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Value::Object(members) = &mut schema {
        members
            .entry("x-guidance")
            .or_insert_with(|| json!({ "whitespace_pattern": JSON_WHITESPACE }));
    }
    Ok(schema)
}

impl GrammarMatcher {
    fn failure(&self, fallback: impl ToString) -> Failure {
        failure_of(self.matcher.get_error().unwrap_or_else(|| fallback.to_string()))
    }

    pub fn mask(&mut self, mask: &mut [u32]) -> Result<(), Failure> {
        let needed = self.token_count.div_ceil(32);
        if mask.len() < needed {
            return Err(Failure::Invalid(format!(
                "a mask of {} words is too small for {} tokens, which need {needed}",
                mask.len(),
                self.token_count
            )));
        }
        let allowed = self.matcher.compute_mask_or_eos().map_err(|e| self.failure(e))?;
        mask.fill(0);
        let words = allowed.as_slice();
        let count = needed.min(words.len());
        mask[..count].copy_from_slice(&words[..count]);
        if self.token_count % 32 != 0 {
            mask[needed - 1] &= (1 << (self.token_count % 32)) - 1;
        }
        Ok(())
    }

    pub fn consume(&mut self, token: u32) -> Result<(), Failure> {
        if token as usize >= self.token_count {
            return Err(Failure::Invalid(format!(
                "token {token} is not one of {} tokens",
                self.token_count
            )));
        }
        match self.matcher.try_consume_tokens(&[token]).map_err(|e| self.failure(e))? {
            1 => Ok(()),
            _ => Err(Failure::Invalid(format!("the grammar does not allow token {token} here"))),
        }
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_grammar_env_open(
    out: *mut *mut GrammarEnv,
    token_bytes: *const u8,
    token_sizes: *const u32,
    token_special: *const u8,
    token_count: u32,
    eos_tokens: *const u32,
    eos_count: usize,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the sizes are the caller's promise.
    unsafe {
        guard(error, || {
            if token_count > MAX_TOKENS {
                return Err(Failure::TooLarge(format!(
                    "the tokenizer has {token_count} tokens; at most {MAX_TOKENS} can be constrained"
                )));
            }
            let sizes = borrow(token_sizes, token_count as usize);
            if let Some(size) = sizes.iter().find(|&&size| size > MAX_TOKEN_BYTES) {
                return Err(Failure::TooLarge(format!(
                    "the tokenizer has a token of {size} bytes; at most {MAX_TOKEN_BYTES} can be constrained"
                )));
            }
            let special = if token_special.is_null() { &[] } else { borrow(token_special, sizes.len()) };
            let mut at = token_bytes;
            let mut words = Vec::with_capacity(sizes.len());
            for &size in sizes {
                words.push(borrow(at, size as usize).to_vec());
                at = at.wrapping_add(size as usize);
            }
            let env = GrammarEnv::new(words, special, borrow(eos_tokens, eos_count))?;
            *out = Box::into_raw(Box::new(env));
            Ok(())
        })
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_grammar_env_close(env: *mut GrammarEnv) {
    if !env.is_null() {
        // SAFETY: it came from realm_deps_grammar_env_open.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(env) })));
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_open(
    out: *mut *mut GrammarMatcher,
    env: *const GrammarEnv,
    kind: c_int,
    text: *const c_char,
    text_size: usize,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the pointers are the caller's promise.
    unsafe {
        guard(error, || {
            let text = borrow_text(text, text_size, MAX_GRAMMAR_BYTES, "the grammar")?;
            *out = Box::into_raw(Box::new((*env).matcher(kind, text)?));
            Ok(())
        })
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_clone(
    out: *mut *mut GrammarMatcher,
    matcher: *const GrammarMatcher,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the pointers are the caller's promise.
    unsafe {
        guard(error, || {
            let source = &*matcher;
            let copy = GrammarMatcher {
                matcher: source.matcher.clone(),
                token_count: source.token_count,
            };
            *out = Box::into_raw(Box::new(copy));
            Ok(())
        })
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_close(matcher: *mut GrammarMatcher) {
    if !matcher.is_null() {
        // SAFETY: it came from realm_deps_matcher_open or _clone.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(matcher) })));
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_reset(
    matcher: *mut GrammarMatcher,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the pointers are the caller's promise.
    unsafe {
        guard(error, || {
            let m = &mut *matcher;
            m.matcher.reset().map_err(|e| m.failure(e))
        })
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_mask(
    matcher: *mut GrammarMatcher,
    mask: *mut u32,
    mask_count: usize,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the pointers are the caller's promise.
    unsafe {
        guard(error, || {
            let mask: &mut [u32] = if mask_count == 0 {
                &mut []
            } else {
                std::slice::from_raw_parts_mut(mask, mask_count)
            };
            (*matcher).mask(mask)
        })
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_consume(
    matcher: *mut GrammarMatcher,
    token: u32,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the pointers are the caller's promise.
    unsafe { guard(error, || (*matcher).consume(token)) }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_rollback(
    matcher: *mut GrammarMatcher,
    token_count: usize,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the pointers are the caller's promise.
    unsafe {
        guard(error, || {
            let m = &mut *matcher;
            m.matcher.rollback(token_count).map_err(|e| m.failure(e))
        })
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_forced(
    matcher: *mut GrammarMatcher,
    out: *mut *mut c_char,
    out_size: *mut usize,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the pointers are the caller's promise.
    unsafe {
        guard(error, || {
            let m = &mut *matcher;
            let bytes = m.matcher.compute_ff_bytes();
            if let Some(error) = m.matcher.get_error() {
                return Err(failure_of(error));
            }
            hand_out(&bytes, out, out_size)
        })
    }
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_is_accepting(matcher: *mut GrammarMatcher) -> c_int {
    // SAFETY: the pointer is the caller's promise.
    let accepting = catch_unwind(AssertUnwindSafe(|| unsafe { (*matcher).matcher.is_accepting() }));
    c_int::from(matches!(accepting, Ok(Ok(true))))
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_matcher_is_stopped(matcher: *const GrammarMatcher) -> c_int {
    // SAFETY: the pointer is the caller's promise.
    c_int::from(unsafe { (*matcher).matcher.is_stopped() })
}
