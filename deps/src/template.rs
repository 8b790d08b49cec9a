//! Chat templates: Jinja as Hugging Face's `apply_chat_template` runs it, over MiniJinja.
//!
//! MiniJinja is Jinja with Rust's values. To have Python's, the syntax tree is rebuilt before it is
//! compiled: literals, slices, subscripts and the operators that differ become calls of functions in
//! `python.rs`, whose names begin with a zero byte, so that no template can say them.
//!
//! The same functions bound the work. MiniJinja counts instructions (its fuel), but one instruction can
//! double a text, and thirty of them a gigabyte. So whatever reads or makes more than a word charges its
//! bytes to a budget first (`charge`), and compile-time evaluation, which is before any budget, is
//! starved of operators.

use crate::python::{self, invalid, Args, Dumps};
use crate::{borrow_text, guard, hand_out, Failure};
use minijinja::machinery::ast::{self, Expr, Spanned, Stmt};
use minijinja::machinery::{make_string_output, parse, CodeGenerator, Span, Vm, WhitespaceConfig};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind};
use minijinja::{filters, AutoEscape, Environment, Error, ErrorKind, FormatStyle, State, Value};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, CString};
use std::fmt::Write;

const MAX_TEMPLATE_BYTES: usize = 1 << 20;
const MAX_CONTEXT_BYTES: usize = 64 << 20;
const MAX_TEXT_BYTES: usize = 64 << 20;
/// Bytes that all operations of one rendering may read or write together: under a second.
const MAX_WORK_BYTES: usize = 1 << 30;
/// Bytes that may be written, into the output or into variables ({% set %}...{% endset %}).
const MAX_EMITTED_BYTES: usize = 2 * MAX_TEXT_BYTES;
/// Instructions; about a second as well. The longest published template needs 2000 for a message.
const MAX_INSTRUCTIONS: u64 = 20_000_000;
/// MiniJinja takes 4 for a macro's call: 50 calls deep, within 512 KiB of stack.
const MAX_RECURSION: usize = 200;

/// Marks errors that are limits, for `failure_of`.
pub const TOO_LARGE: &str = "too large: ";

thread_local! {
    static WORK_LEFT: Cell<usize> = const { Cell::new(0) };
    static EMITTED: Cell<usize> = const { Cell::new(0) };
    /// What the template gave raise_exception: an error's text would come with its place.
    static RAISED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Takes `bytes` from what this rendering may still do.
pub fn charge(bytes: usize) -> Result<(), Error> {
    let left = WORK_LEFT.get();
    if bytes > MAX_TEXT_BYTES || bytes > left {
        return Err(invalid(format!("{TOO_LARGE}the template makes more text than is allowed")));
    }
    WORK_LEFT.set(left - bytes);
    Ok(())
}

fn charge_emitted(bytes: usize) -> Result<(), Error> {
    EMITTED.set(EMITTED.get() + bytes);
    match EMITTED.get() > MAX_EMITTED_BYTES {
        true => charge(usize::MAX),
        false => Ok(()),
    }
}

/// Renders a template with the members of a JSON object as its variables.
pub fn render(template: &str, context: &str) -> Result<String, Failure> {
    WORK_LEFT.set(MAX_WORK_BYTES);
    EMITTED.set(0);
    RAISED.take();

    let mut context: serde_json::Value = serde_json::from_str(context)
        .map_err(|e| Failure::Invalid(format!("the template's context is not JSON: {e}")))?;
    let Some(members) = context.as_object_mut() else {
        return Err(Failure::Invalid("the template's context is not a JSON object".into()));
    };
    let now_ms = members.shift_remove("__now_ms").and_then(|v| v.as_i64());
    let root = python::from_json(context).map_err(failure_of)?;

    let source = prepare(template);
    let whitespace = WhitespaceConfig {
        trim_blocks: true,
        lstrip_blocks: true,
        keep_trailing_newline: false,
    };
    let tree = parse(&source, "chat_template", SyntaxConfig, whitespace).map_err(failure_of)?;
    let tree = rebuild(&tree).map_err(failure_of)?;
    let mut generator = CodeGenerator::new("chat_template", &source);
    generator.compile_stmt(&tree);
    let (instructions, blocks) = generator.finish();

    let environment = environment(now_ms);
    let mut out = String::new();
    let result = Vm::new(&environment)
        .eval(&instructions, root, &blocks, &mut make_string_output(&mut out), AutoEscape::None)
        .map(|_| ());
    result.map_err(failure_of)?;
    if out.len() > MAX_TEXT_BYTES {
        return Err(Failure::TooLarge(format!("the template's output has {} bytes", out.len())));
    }
    Ok(out)
}

fn failure_of(error: Error) -> Failure {
    if let Some(raised) = RAISED.take() {
        return Failure::Invalid(raised);
    }
    let text = error.detail().map_or_else(|| error.kind().to_string(), |detail| match error.kind() {
        ErrorKind::InvalidOperation => detail.to_string(),
        kind => format!("{kind}: {detail}"),
    });
    let place = error.line().map_or(String::new(), |line| format!(" (line {line} of the template)"));
    let recursion = text.contains("recursion limit");
    match text.strip_prefix(TOO_LARGE) {
        Some(text) => Failure::TooLarge(format!("{text}{place}")),
        None if error.kind() == ErrorKind::OutOfFuel => {
            Failure::TooLarge(format!("the template runs too long{place}"))
        }
        None if recursion => Failure::TooLarge(format!("{text}{place}")),
        None => Failure::Invalid(format!("{text}{place}")),
    }
}

// ---- The text ----

/// What Jinja's own reader does to line ends, and Hugging Face's {% generation %} as the {% with %} that
/// it amounts to: a scope of its own around its body.
fn prepare(template: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(template);
    if text.contains('\r') {
        text = Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n"));
    }
    if !text.contains("generation") {
        return text;
    }
    let source = text.as_ref();
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    let mut at = 0;
    let mut raw = false;
    while let Some(found) = source[at..].find('{') {
        let open = at + found;
        let end = match source.as_bytes().get(open + 1) {
            Some(b'#') if !raw => source[open + 2..].find("#}").map(|i| open + 2 + i + 2),
            Some(b'{') if !raw => tag_end(source, open + 2, "}}"),
            Some(b'%') => {
                let inside = open + 2;
                let word_at = source[inside..]
                    .find(|c: char| !(c.is_whitespace() || c == '-' || c == '+'))
                    .map_or(source.len(), |i| inside + i);
                let word_end = source[word_at..]
                    .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .map_or(source.len(), |i| word_at + i);
                let replacement = match &source[word_at..word_end] {
                    "raw" => {
                        raw = true;
                        None
                    }
                    "endraw" => {
                        raw = false;
                        None
                    }
                    "generation" if !raw => Some("with"),
                    "endgeneration" if !raw => Some("endwith"),
                    _ => None,
                };
                if let Some(word) = replacement {
                    out.push_str(&source[copied..word_at]);
                    out.push_str(word);
                    copied = word_end;
                }
                if raw { Some(word_end) } else { tag_end(source, word_end, "%}") }
            }
            _ => Some(open + 1),
        };
        match end {
            Some(end) => at = end,
            None => break,
        }
    }
    if copied == 0 {
        return text;
    }
    out.push_str(&source[copied..]);
    Cow::Owned(out)
}

/// Where the tag that is open at `from` ends; its closing mark may stand in a string before.
fn tag_end(source: &str, from: usize, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in source[from..].char_indices() {
        match quote {
            _ if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if source[from + i..].starts_with(close) => return Some(from + i + close.len()),
            None => {}
        }
    }
    None
}

// ---- The tree ----

const ADD: &str = "\0add";
const ATTRIBUTE: &str = "\0attribute";
const CONCAT: &str = "\0concat";
const CONSTANT: &str = "\0constant";
const DICT: &str = "\0dict";
const DIVIDE: &str = "\0divide";
const FLOOR_DIVIDE: &str = "\0floor_divide";
const ITEM: &str = "\0item";
const ITERABLE: &str = "\0iterable";
const LIST: &str = "\0list";
const MULTIPLY: &str = "\0multiply";
const REMAINDER: &str = "\0remainder";
const SIZED: &str = "\0sized";
const SLICE: &str = "\0slice";
const STORABLE: &str = "\0storable";

fn rebuild<'a>(tree: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
    statement(tree)
}

fn call<'a>(function: &'static str, args: Vec<Expr<'a>>, span: Span) -> Expr<'a> {
    Expr::Call(Spanned::new(
        ast::Call {
            expr: Expr::Var(Spanned::new(ast::Var { id: function }, span)),
            args: args.into_iter().map(ast::CallArg::Pos).collect(),
        },
        span,
    ))
}

fn constant<'a>(value: Value, span: Span) -> Expr<'a> {
    Expr::Const(Spanned::new(ast::Const { value }, span))
}

/// An operand whose size the next operation depends on, charged for it.
fn sized<'a>(operand: &Expr<'a>) -> Expr<'a> {
    match operand {
        Expr::Const(_) => expression(operand),
        _ => call(SIZED, vec![expression(operand)], operand.span()),
    }
}

fn optional<'a>(expr: &Option<Expr<'a>>) -> Option<Expr<'a>> {
    expr.as_ref().map(expression)
}

fn arguments<'a>(args: &[ast::CallArg<'a>]) -> Vec<ast::CallArg<'a>> {
    use ast::CallArg::{KwargSplat, Kwarg, Pos, PosSplat};
    args.iter()
        .map(|arg| match arg {
            Pos(e) => Pos(expression(e)),
            Kwarg(name, e) => Kwarg(name, expression(e)),
            PosSplat(e) => PosSplat(expression(e)),
            KwargSplat(e) => KwargSplat(expression(e)),
        })
        .collect()
}

fn expression<'a>(e: &Expr<'a>) -> Expr<'a> {
    use ast::BinOpKind as Op;
    let span = e.span();
    match e {
        Expr::Var(v) => Expr::Var(Spanned::new(ast::Var { id: v.id }, span)),
        Expr::Const(c) => constant(c.value.clone(), span),
        Expr::Slice(s) => {
            let bound = |b: &Option<Expr<'a>>| optional(b).unwrap_or_else(|| constant(().into(), span));
            let args = vec![expression(&s.expr), bound(&s.start), bound(&s.stop), bound(&s.step)];
            call(SLICE, args, span)
        }
        Expr::UnaryOp(u) => {
            let op = match u.op {
                ast::UnaryOpKind::Not => ast::UnaryOpKind::Not,
                ast::UnaryOpKind::Neg => ast::UnaryOpKind::Neg,
            };
            Expr::UnaryOp(Spanned::new(ast::UnaryOp { op, expr: expression(&u.expr) }, span))
        }
        Expr::BinOp(b) => {
            let function = match b.op {
                Op::Add => Some(ADD),
                Op::Concat => Some(CONCAT),
                Op::Mul => Some(MULTIPLY),
                Op::Div => Some(DIVIDE),
                Op::FloorDiv => Some(FLOOR_DIVIDE),
                Op::Rem => Some(REMAINDER),
                _ => None,
            };
            if let Some(function) = function {
                return call(function, vec![expression(&b.left), expression(&b.right)], span);
            }
            let (left, right) = match b.op {
                Op::ScAnd | Op::ScOr => (expression(&b.left), expression(&b.right)),
                _ => (sized(&b.left), sized(&b.right)),
            };
            Expr::BinOp(Spanned::new(ast::BinOp { op: b.op, left, right }, span))
        }
        Expr::Compare(c) => {
            let ops = c
                .ops
                .iter()
                .map(|o| ast::CompareOp { op: o.op, expr: sized(&o.expr) })
                .collect();
            Expr::Compare(Spanned::new(ast::Compare { expr: sized(&c.expr), ops }, span))
        }
        Expr::IfExpr(i) => Expr::IfExpr(Spanned::new(
            ast::IfExpr {
                test_expr: expression(&i.test_expr),
                true_expr: expression(&i.true_expr),
                false_expr: optional(&i.false_expr),
            },
            span,
        )),
        Expr::Filter(f) => Expr::Filter(Spanned::new(
            ast::Filter { name: f.name, expr: optional(&f.expr), args: arguments(&f.args) },
            span,
        )),
        Expr::Test(t) => Expr::Test(Spanned::new(
            ast::Test { name: t.name, expr: tested(t), args: arguments(&t.args) },
            span,
        )),
        Expr::GetAttr(g) if python::DICT_METHODS.contains(&g.name) => {
            call(ATTRIBUTE, vec![expression(&g.expr), constant(g.name.into(), span)], span)
        }
        Expr::GetAttr(g) => Expr::GetAttr(Spanned::new(
            ast::GetAttr { expr: expression(&g.expr), name: g.name },
            span,
        )),
        Expr::GetItem(g) => {
            call(ITEM, vec![expression(&g.expr), expression(&g.subscript_expr)], span)
        }
        Expr::Call(c) => Expr::Call(rebuild_call(c)),
        Expr::List(l) => call(LIST, l.items.iter().map(expression).collect(), span),
        Expr::Map(m) => {
            let pairs = m.keys.iter().zip(&m.values).flat_map(|(k, v)| [expression(k), expression(v)]);
            call(DICT, pairs.collect(), span)
        }
    }
}

/// `is defined` is about the name, so that its operand must stay bare.
fn tested<'a>(t: &ast::Test<'a>) -> Expr<'a> {
    match t.args.is_empty() {
        true => expression(&t.expr),
        false => sized(&t.expr),
    }
}

fn rebuild_call<'a>(c: &Spanned<ast::Call<'a>>) -> Spanned<ast::Call<'a>> {
    let callee = match &c.expr {
        // A method's call: the name is not looked up as an attribute.
        Expr::GetAttr(g) => Expr::GetAttr(Spanned::new(
            ast::GetAttr { expr: expression(&g.expr), name: g.name },
            g.span(),
        )),
        other => expression(other),
    };
    Spanned::new(ast::Call { expr: callee, args: arguments(&c.args) }, c.span())
}

/// What stands left of an assignment keeps its shape.
fn target<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::List(l) => Expr::List(Spanned::new(
            ast::List { items: l.items.iter().map(target).collect() },
            e.span(),
        )),
        Expr::GetAttr(g) => Expr::GetAttr(Spanned::new(
            ast::GetAttr { expr: target(&g.expr), name: g.name },
            e.span(),
        )),
        other => expression(other),
    }
}

fn body<'a>(statements: &[Stmt<'a>]) -> Result<Vec<Stmt<'a>>, Error> {
    statements.iter().map(statement).collect()
}

fn rebuild_macro<'a>(m: &Spanned<ast::Macro<'a>>) -> Result<Spanned<ast::Macro<'a>>, Error> {
    Ok(Spanned::new(
        ast::Macro {
            name: m.name,
            args: m.args.iter().map(target).collect(),
            defaults: m.defaults.iter().map(expression).collect(),
            body: body(&m.body)?,
        },
        m.span(),
    ))
}

fn statement<'a>(s: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
    Ok(match s {
        Stmt::Template(t) => {
            Stmt::Template(Spanned::new(ast::Template { children: body(&t.children)? }, t.span()))
        }
        Stmt::EmitExpr(e) => Stmt::EmitExpr(Spanned::new(
            ast::EmitExpr { expr: expression(&e.expr) },
            e.span(),
        )),
        // Long text in a loop is output that no instruction count sees.
        Stmt::EmitRaw(r) if r.raw.len() > 32 => {
            let text = constant(Value::from(r.raw), r.span());
            let expr = call(CONSTANT, vec![text], r.span());
            Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, r.span()))
        }
        Stmt::EmitRaw(r) => Stmt::EmitRaw(Spanned::new(ast::EmitRaw { raw: r.raw }, r.span())),
        Stmt::ForLoop(f) => Stmt::ForLoop(Spanned::new(
            ast::ForLoop {
                target: target(&f.target),
                iter: call(ITERABLE, vec![expression(&f.iter)], f.iter.span()),
                filter_expr: optional(&f.filter_expr),
                recursive: f.recursive,
                body: body(&f.body)?,
                else_body: body(&f.else_body)?,
            },
            f.span(),
        )),
        Stmt::IfCond(i) => Stmt::IfCond(Spanned::new(
            ast::IfCond {
                expr: expression(&i.expr),
                true_body: body(&i.true_body)?,
                false_body: body(&i.false_body)?,
            },
            i.span(),
        )),
        Stmt::WithBlock(w) => Stmt::WithBlock(Spanned::new(
            ast::WithBlock {
                assignments: w.assignments.iter().map(|(t, e)| (target(t), expression(e))).collect(),
                body: body(&w.body)?,
            },
            w.span(),
        )),
        Stmt::Set(set) => {
            let value = expression(&set.expr);
            let expr = match &set.target {
                Expr::GetAttr(_) => call(STORABLE, vec![value], set.span()),
                _ => value,
            };
            Stmt::Set(Spanned::new(ast::Set { target: target(&set.target), expr }, set.span()))
        }
        Stmt::SetBlock(set) => Stmt::SetBlock(Spanned::new(
            ast::SetBlock {
                target: target(&set.target),
                filter: optional(&set.filter),
                body: body(&set.body)?,
            },
            set.span(),
        )),
        Stmt::AutoEscape(a) => Stmt::AutoEscape(Spanned::new(
            ast::AutoEscape { enabled: expression(&a.enabled), body: body(&a.body)? },
            a.span(),
        )),
        Stmt::FilterBlock(f) => Stmt::FilterBlock(Spanned::new(
            ast::FilterBlock { filter: expression(&f.filter), body: body(&f.body)? },
            f.span(),
        )),
        Stmt::Block(b) => Stmt::Block(Spanned::new(
            ast::Block { name: b.name, required: b.required, body: body(&b.body)? },
            b.span(),
        )),
        Stmt::Macro(m) => Stmt::Macro(rebuild_macro(m)?),
        Stmt::CallBlock(c) => Stmt::CallBlock(Spanned::new(
            ast::CallBlock {
                call: rebuild_call(&c.call),
                macro_decl: rebuild_macro(&c.macro_decl)?,
            },
            c.span(),
        )),
        Stmt::Continue(c) => Stmt::Continue(Spanned::new(ast::Continue, c.span())),
        Stmt::Break(b) => Stmt::Break(Spanned::new(ast::Break, b.span())),
        Stmt::Do(d) => Stmt::Do(Spanned::new(ast::Do { call: rebuild_call(&d.call) }, d.span())),
        // A model's template is one text: there is nothing to load from.
        Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
            return Err(Error::new(
                ErrorKind::TemplateNotFound,
                "a chat template cannot import, extend or include another",
            ))
        }
    })
}

// ---- The environment ----

type Operator = fn(&Value, &Value) -> Result<Value, Error>;

fn environment(now_ms: Option<i64>) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_fuel(Some(MAX_INSTRUCTIONS));
    env.set_recursion_limit(MAX_RECURSION);
    env.set_unknown_method_callback(python::call_method);
    env.set_formatter(|out, _, value| {
        charge(python::size(value) + 8)?;
        if let Some(text) = value.as_str() {
            charge_emitted(text.len())?;
            return out.write_str(text).map_err(Error::from);
        }
        let text = python::str(value);
        charge(text.len())?;
        charge_emitted(text.len())?;
        out.write_str(&text).map_err(Error::from)
    });
    add_operators(&mut env);
    add_functions(&mut env, now_ms);
    add_filters(&mut env);
    add_tests(&mut env);
    env
}

fn add_operators(env: &mut Environment<'static>) {
    for (name, operator) in [
        (ADD, python::add as Operator),
        (CONCAT, python::concat),
        (DIVIDE, python::divide),
        (FLOOR_DIVIDE, python::floor_divide),
        (ITEM, python::item),
        (MULTIPLY, python::multiply),
    ] {
        env.add_function(name, move |a: Value, b: Value| operator(&a, &b));
    }
    env.add_function(REMAINDER, |state: &State, a: Value, b: Value| {
        python::remainder(state, &a, &b)
    });
    env.add_function(ATTRIBUTE, |value: Value, name: String| python::dict_attribute(&value, &name));
    env.add_function(CONSTANT, |value: Value| value);
    env.add_function(SIZED, |value: Value| charge(python::size(&value)).map(|()| value));
    env.add_function(STORABLE, python::storable);
    env.add_function(ITERABLE, python::iterable);
    env.add_function(LIST, |items: Rest<Value>| python::list(items.0));
    env.add_function(DICT, |pairs: Rest<Value>| {
        python::dict(pairs.chunks_exact(2).map(|p| (p[0].clone(), p[1].clone())).collect())
    });
    env.add_function(SLICE, |value: Value, bounds: Rest<Value>| python::slice(&value, &bounds));
}

fn add_functions(env: &mut Environment<'static>, now_ms: Option<i64>) {
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let message = python::str(&message);
        RAISED.set(Some(message.clone()));
        Err(invalid(message))
    });
    env.add_function("strftime_now", move |format: String| strftime(&format, now_ms));
    env.add_function("cycler", |items: Rest<Value>| match items.is_empty() {
        true => Err(invalid("cycler needs at least one value")),
        false => Ok(Value::from_object(python::Cycler { items: items.0, at: 0.into() })),
    });
    env.add_function("joiner", |args: Rest<Value>| {
        let separator = args.first().cloned().unwrap_or_else(|| Value::from(", "));
        Value::from_object(python::Joiner { separator, used: false.into() })
    });
    env.add_function("dict", |args: Rest<Value>| {
        let mut members = indexmap::IndexMap::new();
        for arg in args.iter() {
            charge(python::size(arg))?;
            for key in arg.try_iter()? {
                match arg.kind() {
                    ValueKind::Map => members.insert(key.clone(), arg.get_item(&key)?),
                    _ => members.insert(key.get_item_by_index(0)?, key.get_item_by_index(1)?),
                };
            }
        }
        python::dict(members)
    });
    env.add_function("namespace", |args: Rest<Value>| {
        let namespace = minijinja::functions::namespace(None)?;
        if args.is_empty() {
            return Ok(namespace);
        }
        // Only its own constructor can fill one; what it is given is checked first.
        let mut members = indexmap::IndexMap::new();
        for arg in args.iter() {
            for key in arg.try_iter()? {
                let value = python::storable(arg.get_item(&key)?)?;
                members.insert(key, value);
            }
        }
        minijinja::functions::namespace(Some(python::dict(members)?))
    });
}

/// Wraps one of MiniJinja's filters: what it reads and makes is charged, what it makes is Python's.
fn guarded(env: &mut Environment<'static>, name: &'static str, filter: Value) {
    env.add_filter(name, move |state: &State, args: Rest<Value>| -> Result<Value, Error> {
        for arg in args.iter() {
            // Splitting text into characters makes a value of each.
            let per_byte = if matches!(name, "list" | "batch" | "slice" | "unique" | "sort") { 32 } else { 1 };
            charge(python::size(arg).saturating_mul(per_byte))?;
            if python::integer(arg).is_some_and(|n| n.abs() > 100_000) && name != "abs" && name != "default" {
                return Err(invalid(format!("{TOO_LARGE}an argument of '{name}' is over 100000")));
            }
        }
        let result = python::normalize(filter.call(state, &args)?)?;
        charge(result.as_str().map_or(0, str::len))?;
        Ok(result)
    });
}

fn add_filters(env: &mut Environment<'static>) {
    for (name, filter) in [
        ("abs", Value::from_function(filters::abs)),
        ("attr", Value::from_function(filters::attr)),
        ("batch", Value::from_function(filters::batch)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("chain", Value::from_function(filters::chain)),
        ("default", Value::from_function(filters::default)),
        ("d", Value::from_function(filters::default)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("first", Value::from_function(filters::first)),
        ("groupby", Value::from_function(filters::groupby)),
        ("last", Value::from_function(filters::last)),
        ("lines", Value::from_function(filters::lines)),
        ("list", Value::from_function(filters::list)),
        ("lower", Value::from_function(filters::lower)),
        ("map", Value::from_function(filters::map)),
        ("max", Value::from_function(filters::max)),
        ("min", Value::from_function(filters::min)),
        ("pprint", Value::from_function(filters::pprint)),
        ("reject", Value::from_function(filters::reject)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("reverse", Value::from_function(filters::reverse)),
        ("select", Value::from_function(filters::select)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("slice", Value::from_function(filters::slice)),
        ("sort", Value::from_function(filters::sort)),
        ("split", Value::from_function(filters::split)),
        ("sum", Value::from_function(filters::sum)),
        ("unique", Value::from_function(filters::unique)),
        ("upper", Value::from_function(filters::upper)),
        ("zip", Value::from_function(filters::zip)),
    ] {
        guarded(env, name, filter);
    }
    for name in ["e", "escape", "forceescape", "indent", "title", "trim", "replace", "join", "string", "int", "float", "round", "items"] {
        env.add_filter(name, move |args: Rest<Value>| filter(name, &args));
    }
    env.add_filter("format", |text: String, args: Rest<Value>| {
        python::format(FormatStyle::Printf, &text, &args)
    });
    env.add_filter("tojson", |args: Rest<Value>| tojson(&args));
    for name in ["length", "count"] {
        env.add_filter(name, |value: Value| match value.as_str() {
            Some(text) => charge(text.len()).map(|()| Value::from(text.chars().count())),
            None if value.is_undefined() => Ok(Value::from(0)),
            None => value
                .len()
                .map(Value::from)
                .ok_or_else(|| invalid(format!("{} has no length", value.kind()))),
        });
    }
}

/// The filters that differ from MiniJinja's.
fn filter(name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some((value, rest)) = args.split_first() else {
        return Err(invalid(format!("filter '{name}' needs a value")));
    };
    charge(python::size(value))?;
    let args = Args::new(rest);
    let text = || {
        let text = python::str(value);
        charge(text.len()).map(|()| text)
    };
    Ok(match name {
        "string" if value.as_str().is_some() => value.clone(),
        "string" => Value::from(text()?),
        "e" | "escape" if value.is_safe() => value.clone(),
        "e" | "escape" | "forceescape" => Value::from_safe_string(python::escape(&text()?)?),
        "title" => Value::from(title(&text()?)),
        "trim" => {
            let text = text()?;
            let set = args.text(0, "chars")?;
            Value::from(match &set {
                Some(set) => text.trim_matches(|c| set.contains(c)),
                None => text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)),
            })
        }
        "replace" => {
            let (old, new) = (args.text(0, "old")?, args.text(1, "new")?);
            let (Some(old), Some(new)) = (old, new) else {
                return Err(invalid("replace needs two strings"));
            };
            python::replace(&text()?, &old, &new, args.int(2, "count")?)?
        }
        "indent" => indent(&text()?, &args)?,
        "join" => {
            let separator = args.given(0, "d").map_or(String::new(), |s| python::str(&s));
            let attribute = args.given(1, "attribute");
            let mut out = String::new();
            for (i, item) in value.try_iter()?.enumerate() {
                if i > 0 {
                    charge(separator.len())?;
                    out.push_str(&separator);
                }
                let item = match &attribute {
                    Some(attribute) => item.get_item(attribute)?,
                    None => item,
                };
                charge(python::size(&item) + 8)?;
                let _ = python::write_str(&mut out, &item);
            }
            Value::from(out)
        }
        "int" => {
            let default = args.get(0, "default").unwrap_or_else(|| Value::from(0));
            let base = args.int(1, "base")?.unwrap_or(10);
            int(value, u32::try_from(base).unwrap_or(10)).unwrap_or(default)
        }
        "float" => {
            let default = args.get(0, "default").unwrap_or_else(|| Value::from(0.0));
            let parsed = match value.as_str() {
                Some(text) => text.trim().replace('_', "").parse().ok(),
                None => python::integer(value)
                    .map(|i| i as f64)
                    .or_else(|| f64::try_from(value.clone()).ok()),
            };
            parsed.map_or(default, Value::from)
        }
        "round" => round(value, &args)?,
        "items" if value.is_undefined() => python::list(Vec::new())?,
        "items" => match value.kind() {
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    let member = value.get_item(&key)?;
                    pairs.push(python::tuple(vec![key, member])?);
                }
                python::list(pairs)?
            }
            kind => return Err(invalid(format!("items needs a dictionary, not {kind}"))),
        },
        _ => return Err(Error::from(ErrorKind::UnknownFilter)),
    })
}

/// Jinja's title: a word begins after white space, a hyphen or an opening bracket.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        if begins {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        begins = c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<');
    }
    out
}

fn int(value: &Value, base: u32) -> Option<Value> {
    if let Some(i) = python::integer(value) {
        return Some(i64::try_from(i).map_or_else(|_| Value::from(i), Value::from));
    }
    if let Some(text) = value.as_str() {
        let text = text.trim();
        if let Ok(i) = i64::from_str_radix(&text.replace('_', ""), base.clamp(2, 36)) {
            return Some(Value::from(i));
        }
        return text.parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| Value::from(x as i64));
    }
    f64::try_from(value.clone()).ok().filter(|x| x.is_finite()).map(|x| Value::from(x as i64))
}

/// Python's `round`, half to even of the exact value, which is what printing digits does.
fn round(value: &Value, args: &Args) -> Result<Value, Error> {
    let precision = args.int(0, "precision")?.unwrap_or(0).clamp(-300, 300) as i32;
    let Some(x) = python::number(value) else {
        return Err(invalid(format!("{} cannot be rounded", value.kind())));
    };
    let scale = 10f64.powi(precision);
    match args.text(1, "method")?.as_deref() {
        None | Some("common") if python::integer(value).is_some() && precision >= 0 => Ok(value.clone()),
        None | Some("common") if precision < 0 => Ok(Value::from((x * scale).round_ties_even() / scale)),
        None | Some("common") => {
            let digits = format!("{x:.*}", precision as usize);
            Ok(Value::from(digits.parse::<f64>().unwrap_or(x)))
        }
        Some("ceil") => Ok(Value::from((x * scale).ceil() / scale)),
        Some("floor") => Ok(Value::from((x * scale).floor() / scale)),
        Some(other) => Err(invalid(format!("there is no rounding method '{other}'"))),
    }
}

fn indent(text: &str, args: &Args) -> Result<Value, Error> {
    let unit = match args.given(0, "width") {
        None => " ".repeat(4),
        Some(width) => match (width.as_str(), python::integer(&width)) {
            (Some(text), _) => text.to_string(),
            (_, Some(n)) => " ".repeat(n.clamp(0, 10_000) as usize),
            _ => return Err(invalid("indent needs a number or a string")),
        },
    };
    let (first, blank) = (args.truth(1, "first"), args.truth(2, "blank"));
    // Jinja puts a line end behind the text and splits that, so that a last empty line counts.
    let text = format!("{text}\n");
    let lines = python::lines(&text, false);
    charge(text.len().saturating_add(lines.len().saturating_mul(unit.len())))?;
    let mut out = String::with_capacity(text.len());
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i > 0 || first) && (blank || !line.is_empty() || (i == 0 && first)) {
            out.push_str(&unit);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// Hugging Face's own: json.dumps, which unlike Jinja's escapes nothing for HTML.
fn tojson(args: &[Value]) -> Result<Value, Error> {
    let Some((value, rest)) = args.split_first() else {
        return Err(invalid("tojson needs a value"));
    };
    let args = Args::new(rest);
    let indent = match args.given(1, "indent") {
        None => None,
        Some(v) => Some(match (v.as_str(), python::integer(&v)) {
            (Some(text), _) => text.to_string(),
            (_, Some(n)) => " ".repeat(n.clamp(0, 1000) as usize),
            _ => return Err(invalid("tojson's indent must be a number or a string")),
        }),
    };
    let separators = match args.given(2, "separators") {
        None => None,
        Some(v) => Some((python::str(&v.get_item_by_index(0)?), python::str(&v.get_item_by_index(1)?))),
    };
    let (item_separator, key_separator) = separators
        .unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()));
    let dumps = Dumps {
        ensure_ascii: args.truth(0, "ensure_ascii"),
        indent,
        item_separator,
        key_separator,
        sort_keys: args.truth(3, "sort_keys"),
    };
    let mut out = String::new();
    dumps.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

fn add_tests(env: &mut Environment<'static>) {
    // Python counts True and False among the numbers, and text and dictionaries among what has items.
    env.add_test("number", |v: Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("sequence", |v: Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable | ValueKind::Undefined)
    });
    env.add_test("iterable", |v: Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable | ValueKind::Undefined)
    });
    env.add_test("callable", |v: Value| {
        v.kind() == ValueKind::Plain || (v.kind() == ValueKind::Map && python::normalize(v.clone()).is_ok_and(|v| {
            v.as_object().is_some_and(|o| o.get_value(&Value::from("arguments")).is_some() && o.get_value(&Value::from("caller")).is_some())
        }))
    });
}

/// Python's `datetime.strftime`: the C library's, and %f.
fn strftime(format: &str, now_ms: Option<i64>) -> Result<Value, Error> {
    if format.len() > 1000 {
        return Err(invalid("a time's format is longer than 1000 bytes"));
    }
    let now_us = match now_ms {
        Some(ms) => i128::from(ms) * 1000,
        None => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_micros() as i128),
    };
    let micros = now_us.rem_euclid(1_000_000);
    let seconds = now_us.div_euclid(1_000_000) as libc::time_t;

    let mut spelled = String::with_capacity(format.len() + 8);
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        spelled.push(c);
        if c == '%' {
            match characters.next() {
                Some('f') => {
                    spelled.pop();
                    let _ = write!(spelled, "{micros:06}");
                }
                // A datetime without a zone has no name or offset to print.
                Some('z' | 'Z') => {
                    spelled.pop();
                }
                Some(other) => spelled.push(other),
                None => spelled.push('%'),
            }
        }
    }
    if spelled.is_empty() {
        return Ok(Value::from(""));
    }
    let spelled = CString::new(spelled).map_err(|_| invalid("a time's format holds a zero byte"))?;
    let mut buffer = [0u8; 8192];
    // SAFETY: the buffer's size is given; tm is filled by the conversion, or strftime is not called.
    let written = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        let converted = match now_ms {
            Some(_) => libc::gmtime_r(&seconds, &mut tm),
            None => libc::localtime_r(&seconds, &mut tm),
        };
        if converted.is_null() {
            return Err(invalid("the time is out of range"));
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), spelled.as_ptr(), &tm)
    };
    Ok(Value::from(String::from_utf8_lossy(&buffer[..written]).into_owned()))
}

/// # Safety
/// As `realm_deps.h` says.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_template_render(
    template_text: *const c_char,
    template_size: usize,
    context_json: *const c_char,
    context_size: usize,
    out: *mut *mut c_char,
    out_size: *mut usize,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the pointers are the caller's promise.
    unsafe {
        guard(error, || {
            let template = borrow_text(template_text, template_size, MAX_TEMPLATE_BYTES, "the template")?;
            let context = borrow_text(context_json, context_size, MAX_CONTEXT_BYTES, "the context")?;
            hand_out(render(template, context)?.as_bytes(), out, out_size)
        })
    }
}
