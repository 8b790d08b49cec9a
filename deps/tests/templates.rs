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

fn seconds_of(template: &str, context: &str) -> (Duration, Result<String, Failure>) {
    let (template, context) = (template.to_string(), context.to_string());
    // As little stack as realm_deps.h promises to need.
    std::thread::Builder::new()
        .stack_size(512 << 10)
        .spawn(move || {
            let start = Instant::now();
            let result = render(&template, &context);
            (start.elapsed(), result)
        })
        .unwrap()
        .join()
        .unwrap()
}

#[test]
fn a_hostile_template_ends_soon_and_with_a_reason() {
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}";
    let ends = "{% endfor %}{% endfor %}";
    let long = "x".repeat(5000);
    let nested = format!("{}1{}", "[".repeat(140), "]".repeat(140));
    for body in [
        format!("{loops}{ends}"),
        format!("{loops}{long}{ends}"),
        format!("{loops}{{{{ '{long}' }}}}{ends}"),
        format!("{{% set n = namespace(x='a') %}}{loops}{{% set n.x = n.x ~ n.x %}}{ends}"),
        format!("{{% set n = namespace(x='a') %}}{loops}{{% set n.x = n.x + n.x %}}{ends}"),
        format!("{{% set n = namespace(x='ab') %}}{loops}{{% set n.x = n.x * 1000 %}}{ends}"),
        format!("{{% set n = namespace(x=[1]) %}}{loops}{{% set n.x = n.x + n.x %}}{ends}"),
        format!("{{% set n = namespace(x=[1]) %}}{loops}{{% set n.x = [n.x] %}}{ends}"),
        format!("{{% set n = namespace(x=[1]) %}}{loops}{{% set n.x = {{'a': n.x}} %}}{ends}"),
        format!("{{% set n = namespace(x=[1]) %}}{loops}{{% set n.x = n.x|batch(1)|list %}}{ends}"),
        format!("{{% set n = namespace(x=[1]) %}}{loops}{{% set n.x = [n.x, n.x] %}}{ends}{{{{ n.x }}}}"),
        format!("{{% set n = namespace(x='a') %}}{loops}{{% set n.x %}}{{{{n.x}}}}{{{{n.x}}}}{{% endset %}}{ends}"),
        format!("{{% set n = namespace(x='a') %}}{loops}{{% set n.x = n.x|replace('a', 'aaaaaaaa') %}}{ends}"),
        format!("{{% set n = namespace(x='a') %}}{loops}{{% set n.x = [n.x, n.x]|join %}}{ends}"),
        format!("{{% set n = namespace(x='a') %}}{loops}{{% set n.x = (n.x, n.x)|tojson %}}{ends}"),
        format!("{{% set s = 'ab' * 9000000 %}}{loops}{{% if s == s ~ '' %}}{{% endif %}}{ends}"),
        format!("{{% set s = 'ab' * 9000000 %}}{loops}{{% if 'c' in s %}}{{% endif %}}{ends}"),
        format!("{{% set s = 'ab' * 9000000 %}}{loops}{{% if s is eq(s) %}}{{% endif %}}{ends}"),
        format!("{{% set s = 'ab' * 9000000 %}}{loops}{{{{ s.upper()|length }}}}{ends}"),
        format!("{{% set s = 'ab' * 9000000 %}}{loops}{{{{ s[::-1]|list|length }}}}{ends}"),
        format!("{{% set s = 'ab' * 9000000 %}}{loops}{{% for c in s %}}{{% endfor %}}{ends}"),
        "{% set n = namespace() %}{% set n.self = n %}".into(),
        "{% set n = namespace() %}{% set n.self = [n] %}".into(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{{ 'a' * 99999999999 }}".into(),
        "{{ ('a' * 60000000) * 60000000 }}".into(),
        "{{ [1] * 99999999999 }}".into(),
        "{{ '%99999999999d' % 1 }}".into(),
        "{{ '%999999999s'|format('a') }}".into(),
        "{{ '{:>999999999}'.format('a') }}".into(),
        "{{ 'a'.center(99999999999) }}".into(),
        "{{ 'a\nb'|indent(99999999999) }}{{ 1/0 }}".into(),
        "{{ range(99999999999)|list }}".into(),
        "{{ [1]|batch(99999999999, 'x')|list }}".into(),
        "{{ [1]|slice(99999999999)|list }}".into(),
        "{{ [[1]]|tojson(indent=99999999999) }}{{ 1/0 }}".into(),
        "{{ strftime_now('%9999999999d') }}{{ 1/0 }}".into(),
        "{{ 9999999999 ** 9999999999 }}".into(),
        format!("{{{{ {nested}|length }}}}{{{{ 1/0 }}}}"),
        format!("{}1{}", "{% if 1 %}".repeat(5000), "{% endif %}".repeat(5000)),
        "{% include 'x' %}".into(),
        "{{ ''.__class__.__mro__ }}".into(),
        "{{ ".repeat(10000),
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(),
    ] {
        let (took, result) = seconds_of(&body, "{}");
        let shown: String = body.chars().take(90).collect();
        match result {
            Ok(out) => assert!(out.len() < 1 << 20, "{shown}: {} bytes", out.len()),
            Err(failure) => {
                assert!(!matches!(failure, Failure::Internal(_)), "{shown}: {failure:?}");
                println!("{took:>12.3?}  {shown}\n              {}", failure.message());
            }
        }
        assert!(took < Duration::from_secs(8), "{shown}: {took:?}");
    }
}

#[test]
fn contexts_that_are_no_object_are_refused() {
    for context in ["", "[]", "1", "{", "\"a\"", &"[".repeat(100_000)] {
        assert!(matches!(render("x", context), Err(Failure::Invalid(_))), "{context:.20}");
    }
}
