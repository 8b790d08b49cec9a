//! Templates against Jinja2's own output (tests/golden/templates), and against hostility.

use realm_deps::template::render;
use realm_deps::Failure;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Another file of cases may be named, to compare a collection of published templates.
fn cases() -> Vec<Value> {
    let path = std::env::var("REALM_TEMPLATE_CASES")
        .unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/templates/golden.json").into());
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    let cases = cases();
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let context = case.get("context").map_or("{}".into(), Value::to_string);
        let got = render(case["template"].as_str().unwrap(), &context);
        let right = match (&got, case["output"].as_str(), case["raised"].as_str()) {
            (Ok(got), Some(wanted), _) => got == wanted,
            (Err(got), None, Some(wanted)) => got.message() == wanted,
            (Err(_), None, None) => true,
            _ => false,
        };
        if !right {
            wrong.push(format!("{name}\n   wanted {} {} {}\n   got    {got:?}", case["output"], case["raised"], case["why"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
