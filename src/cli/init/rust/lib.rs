//! Your program. It answers one request in a fresh sandbox; the crate `realm-guest` says what it may
//! call. This one asks the model the request's "prompt" and streams the answer.

use realm_guest::{program, Error, Model, Request};

fn answer(request: &Request) -> Result<(), Error> {
    let model = Model::open("")?; // the tenant's default model
    let ids = model.tokenize(request.prompt(), true)?;
    if ids.is_empty() {
        return Err(Error::INVALID.say("the prompt is empty"));
    }
    let mut session = model.session(r#"{"temperature":0}"#)?;
    session.feed(&ids)?;
    let max_tokens = request.int("max_tokens", 64);
    session.generate(&format!(r#"{{"stream":true,"max_tokens":{}}}"#, max_tokens))?;
    Ok(())
}

program!(answer);
