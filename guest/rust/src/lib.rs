//! What a tenant's program in Rust compiles against.
//!
//! A program is a `cdylib` for `wasm32-unknown-unknown` that answers one request in a fresh sandbox:
//!
//! ```ignore
//! use realm_guest::{program, Error, Model, Request};
//!
//! fn answer(request: &Request) -> Result<(), Error> {
//!     let model = Model::open("")?;
//!     let mut session = model.session("{}")?;
//!     session.feed(&model.tokenize(request.prompt(), true)?)?;
//!     session.generate(r#"{"max_tokens":32,"stream":true}"#)?;
//!     Ok(())
//! }
//!
//! program!(answer);
//! ```
//!
//! [`raw`] declares the host functions as they are (docs/HOST_ABI.md says what each does, traps on and
//! costs); the rest wraps them: handles close themselves, sizes are asked for, statuses become
//! [`Error`], and a panic becomes the request's error with its message. There is no WASI: what the
//! standard library needs a system for (files, clocks, threads) fails or panics; collections, text
//! and arithmetic are all there.

pub mod json;
pub mod raw;

/// A status below zero, as docs/HOST_ABI.md numbers them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error(pub i32);

impl Error {
    pub const INVALID: Error = Error(-1);
    pub const NOT_FOUND: Error = Error(-2);
    pub const NO_MEMORY: Error = Error(-4);
    pub const QUOTA: Error = Error(-5);
    pub const UNSUPPORTED: Error = Error(-7);
    pub const CONTEXT_FULL: Error = Error(-12);

    /// Ends the request with this status and a sentence of the program's own.
    pub fn say(self, text: &str) -> Error {
        unsafe { raw::respond_error(self.0, text.as_ptr(), text.len()) };
        self
    }
}

/// What every fallible call gives.
pub type Result<T> = std::result::Result<T, Error>;

fn check(result: i32) -> Result<usize> {
    if result < 0 {
        Err(Error(result))
    } else {
        Ok(result as usize)
    }
}

/// Calls `fill` with room until all that there is fits.
fn read_bytes(first: usize, mut fill: impl FnMut(*mut u8, usize) -> i32) -> Result<Vec<u8>> {
    let mut out = vec![0u8; first];
    loop {
        let size = check(fill(out.as_mut_ptr(), out.len()))?;
        if size <= out.len() {
            out.truncate(size);
            return Ok(out);
        }
        out.resize(size, 0);
    }
}

fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// The request as the client sent it: JSON for the built-in interfaces, any bytes in general.
pub struct Request {
    body: String,
    prompt: String,
}

impl Request {
    #[doc(hidden)]
    pub fn read() -> Result<Request> {
        let body = text_of(read_bytes(0, |out, cap| unsafe { raw::request_read(0, out, cap) })?);
        let prompt = json::get(&body, "prompt").and_then(json::string).unwrap_or_default();
        Ok(Request { body, prompt })
    }
    /// All of it.
    pub fn text(&self) -> &str {
        &self.body
    }
    /// The JSON text of the value under `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        json::get(&self.body, key)
    }
    /// The string under "prompt", or "".
    pub fn prompt(&self) -> &str {
        &self.prompt
    }
    /// The whole number under `key`, or `fallback`.
    pub fn int(&self, key: &str, fallback: i64) -> i64 {
        self.get(key).and_then(|v| v.parse().ok()).unwrap_or(fallback)
    }
}

/// Streams text to the client.
pub fn respond_text(text: &str) -> Result<()> {
    check(unsafe { raw::respond_text(text.as_ptr(), text.len()) }).map(|_| ())
}

/// The structured answer, once.
pub fn respond_json(json: &str) -> Result<()> {
    check(unsafe { raw::respond_json(json.as_ptr(), json.len()) }).map(|_| ())
}

/// To the tenant's log; level 0 (debug) to 3 (error).
pub fn log(level: i32, text: &str) {
    unsafe { raw::log(level, text.as_ptr(), text.len()) };
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    unsafe { raw::now_ms() }
}

/// 64 random bits from the request's seed: the same request draws the same ones.
pub fn random() -> u64 {
    unsafe { raw::random() as u64 }
}

/// A model that the tenant was granted.
#[derive(Clone, Copy)]
pub struct Model(pub i32);

impl Model {
    /// "" is the tenant's default model.
    pub fn open(name: &str) -> Result<Model> {
        check(unsafe { raw::model_open(name.as_ptr(), name.len()) }).map(|h| Model(h as i32))
    }
    /// What docs/HOST_ABI.md lists under model_info, as JSON.
    pub fn info(&self) -> Result<String> {
        read_bytes(1024, |out, cap| unsafe { raw::model_info(self.0, out, cap) }).map(text_of)
    }
    /// Token ids of text; with `special`, BOS and EOS are added as the model asks and the text of
    /// special tokens becomes those tokens.
    pub fn tokenize(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        let mut ids = vec![0i32; text.len() + 8];
        loop {
            let flags = if special { 3 } else { 0 };
            let count = check(unsafe {
                raw::tokenize(self.0, text.as_ptr(), text.len(), flags, ids.as_mut_ptr(), ids.len())
            })?;
            if count <= ids.len() {
                ids.truncate(count);
                return Ok(ids);
            }
            ids.resize(count, 0);
        }
    }
    /// The bytes a token adds to the text; maybe half a character.
    pub fn piece(&self, token: i32) -> Result<Vec<u8>> {
        read_bytes(32, |out, cap| unsafe { raw::decode_token(self.0, token, out, cap) })
    }
    /// Renders the model's chat template over `{"messages":[...],"add_generation_prompt":true}`.
    pub fn chat_template(&self, json: &str) -> Result<String> {
        read_bytes(json.len() * 2 + 1024, |out, cap| unsafe {
            raw::chat_template(self.0, json.as_ptr(), json.len(), out, cap)
        })
        .map(text_of)
    }
    /// An empty session; options as JSON ("{}" for none).
    pub fn session(&self, options: &str) -> Result<Session> {
        check(unsafe { raw::session_open(self.0, options.as_ptr(), options.len()) })
            .map(|h| Session(h as i32))
    }
    /// A pooled embedding of `ids`; `options` as docs/HOST_ABI.md says.
    pub fn embed(&self, ids: &[i32], options: &str) -> Result<Vec<f32>> {
        let mut out = vec![0f32; 4096];
        loop {
            let n = check(unsafe {
                raw::embed(
                    self.0,
                    ids.as_ptr(),
                    ids.len(),
                    options.as_ptr(),
                    options.len(),
                    out.as_mut_ptr(),
                    out.len(),
                )
            })?;
            if n <= out.len() {
                out.truncate(n);
                return Ok(out);
            }
            out.resize(n, 0.0);
        }
    }
}

/// One sequence of tokens. Closed when dropped.
pub struct Session(pub i32);

impl Session {
    /// Appends tokens and computes the logits after the last; the new length.
    pub fn feed(&mut self, ids: &[i32]) -> Result<usize> {
        check(unsafe { raw::feed(self.0, ids.as_ptr(), ids.len()) })
    }
    /// Appends one token and computes the logits after it.
    pub fn step(&mut self, token: i32) -> Result<i32> {
        check(unsafe { raw::step(self.0, token) }).map(|t| t as i32)
    }
    /// Chooses a token natively; `options` as JSON, or "" to keep the sampler's settings.
    pub fn sample(&mut self, options: &str) -> Result<i32> {
        check(unsafe { raw::sample(self.0, options.as_ptr(), options.len()) }).map(|t| t as i32)
    }
    /// The k largest logits, descending. Needs the capability `logits`.
    pub fn top_logits(&self, k: usize) -> Result<Vec<(i32, f32)>> {
        let mut ids = vec![0i32; k];
        let mut values = vec![0f32; k];
        let n = check(unsafe {
            raw::top_logits(self.0, k as i32, ids.as_mut_ptr(), values.as_mut_ptr())
        })?;
        Ok(ids.into_iter().zip(values).take(n).collect())
    }
    /// The native loop; its result as JSON.
    pub fn generate(&mut self, options: &str) -> Result<String> {
        let mut out = vec![0u8; 16384];
        let size = check(unsafe {
            raw::generate(self.0, options.as_ptr(), options.len(), out.as_mut_ptr(), out.len())
        })?;
        if size > out.len() {
            out.resize(size, 0);
            check(unsafe {
                raw::generate(self.0, std::ptr::null(), 0, out.as_mut_ptr(), out.len())
            })?;
        }
        out.truncate(size);
        Ok(text_of(out))
    }
    /// A second session with the same tokens, its pages shared until written.
    pub fn fork(&self) -> Result<Session> {
        check(unsafe { raw::session_fork(self.0) }).map(|h| Session(h as i32))
    }
    /// Forgets the tokens from `length` on.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        check(unsafe { raw::session_truncate(self.0, length as i32) }).map(|_| ())
    }
    /// How many tokens it holds.
    pub fn length(&self) -> usize {
        unsafe { raw::session_length(self.0) as usize }
    }
    /// Replaces the biases; `f32::NEG_INFINITY` forbids a token.
    pub fn bias(&mut self, ids: &[i32], values: &[f32]) -> Result<()> {
        if ids.len() != values.len() {
            return Err(Error::INVALID);
        }
        check(unsafe { raw::bias(self.0, ids.as_ptr(), values.as_ptr(), ids.len()) }).map(|_| ())
    }
    /// Only texts of this JSON schema from now on.
    pub fn constrain_json(&mut self, schema: &str) -> Result<()> {
        check(unsafe { raw::constrain(self.0, 2, schema.as_ptr(), schema.len()) }).map(|_| ())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        unsafe { raw::session_close(self.0) };
    }
}

/// The tenant's own small store: what outlives a request.
pub mod state {
    use super::*;

    /// `None` if there is nothing under `key`.
    pub fn get(key: &str) -> Result<Option<Vec<u8>>> {
        match read_bytes(256, |out, cap| unsafe {
            raw::state_get(key.as_ptr(), key.len(), out, cap)
        }) {
            Err(Error::NOT_FOUND) => Ok(None),
            other => other.map(Some),
        }
    }
    pub fn put(key: &str, value: &[u8]) -> Result<()> {
        check(unsafe { raw::state_put(key.as_ptr(), key.len(), value.as_ptr(), value.len()) })
            .map(|_| ())
    }
    pub fn delete(key: &str) -> Result<bool> {
        check(unsafe { raw::state_delete(key.as_ptr(), key.len()) }).map(|n| n > 0)
    }
}

/// Calls another program of the same tenant and gives its structured answer.
pub fn call(name: &str, input: &str) -> Result<String> {
    let mut out = vec![0u8; 16384];
    let size = check(unsafe {
        raw::call(
            name.as_ptr(),
            name.len(),
            input.as_ptr(),
            input.len(),
            out.as_mut_ptr(),
            out.len(),
        )
    })?;
    if size > out.len() {
        return Err(Error(-15));
    }
    out.truncate(size);
    Ok(text_of(out))
}

#[doc(hidden)]
pub fn tell_panics() {
    std::panic::set_hook(Box::new(|info| {
        let text = format!("the program panicked: {}", info);
        unsafe { raw::respond_error(-11, text.as_ptr(), text.len()) };
    }));
}

/// Exports what the host looks for and answers requests with `$answer`, a
/// `fn(&Request) -> Result<()>`.
#[macro_export]
macro_rules! program {
    ($answer:path) => {
        #[no_mangle]
        pub extern "C" fn realm_abi() -> i32 {
            1
        }
        #[no_mangle]
        pub extern "C" fn realm_handle() -> i32 {
            $crate::tell_panics();
            match $crate::Request::read().and_then(|request| $answer(&request)) {
                Ok(()) => 0,
                Err(error) => error.0,
            }
        }
    };
}
