//! Tenant "concierge", in Rust: business rules around the model. It greets by name, refuses what the
//! house does not talk about, counts its calls in the tenant's state and keeps answers short.

use realm_guest::{json, program, respond_text, state, Error, Model, Request};

const REFUSED: [&str; 3] = ["password", "salary", "politics"];

fn answer(request: &Request) -> Result<(), Error> {
    let visits = match state::get("visits")? {
        Some(bytes) => String::from_utf8_lossy(&bytes).parse::<u32>().unwrap_or(0) + 1,
        None => 1,
    };
    state::put("visits", visits.to_string().as_bytes())?;

    let question = request.prompt();
    if REFUSED.iter().any(|word| question.to_lowercase().contains(word)) {
        return respond_text("I am sorry, the house does not talk about that.");
    }
    respond_text(&format!("Welcome, guest number {}. ", visits))?;

    let model = Model::open("")?;
    let mut messages =
        String::from(r#"{"add_generation_prompt":true,"messages":[{"role":"system","content":"#);
    json::quote(&mut messages, "Answer in one short sentence.");
    messages.push_str(r#"},{"role":"user","content":"#);
    json::quote(&mut messages, question);
    messages.push_str("}]}");
    let text = model.chat_template(&messages)?;
    let mut session = model.session(r#"{"temperature":0}"#)?;
    session.feed(&model.tokenize(&text, true)?)?;
    session.generate(r#"{"max_tokens":24,"stop":["\n"],"stream":true}"#)?;
    Ok(())
}

program!(answer);
