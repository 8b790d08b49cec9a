//! Python's side of Jinja: lists, dictionaries, text and numbers that print, add and answer methods
//! as Python's do, and `json.dumps`. Jinja templates are written against Python and lean on it.
//!
//! Invariant: a `List` or `Dict` nests no deeper than `MAX_DEPTH`, which its constructor checks, so
//! that printing and freeing one cannot run out of stack.

use crate::template::{charge, TOO_LARGE};
use indexmap::IndexMap;
use minijinja::value::{DynObject, Enumerator, Kwargs, Object, ObjectExt, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

/// JSON itself is read to 128 levels.
const MAX_DEPTH: u16 = 200;

/// What a value is as part of another.
#[derive(Clone, Copy)]
struct Nesting {
    depth: u16,
    /// Holds something that is not plain data: a macro, a namespace, a loop. Only those can form a
    /// cycle or a chain that grows without its depth being seen.
    opaque: bool,
}

pub struct List {
    pub items: Vec<Value>,
    pub tuple: bool,
    nesting: Nesting,
}

pub struct Dict {
    pub members: IndexMap<Value, Value>,
    nesting: Nesting,
}

pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn nesting(value: &Value) -> Nesting {
    if let Some(list) = value.downcast_object_ref::<List>() {
        list.nesting
    } else if let Some(dict) = value.downcast_object_ref::<Dict>() {
        dict.nesting
    } else {
        let opaque = value.as_object().is_some();
        Nesting { depth: 0, opaque }
    }
}

fn nesting_above<'a>(parts: impl Iterator<Item = &'a Value>) -> Result<Nesting, Error> {
    let mut above = Nesting { depth: 1, opaque: false };
    for part in parts {
        let inner = nesting(part);
        above.depth = above.depth.max(inner.depth + 1);
        above.opaque |= inner.opaque;
    }
    if above.depth > MAX_DEPTH {
        return Err(invalid(format!("{TOO_LARGE}values nest deeper than {MAX_DEPTH} levels")));
    }
    Ok(above)
}

pub fn list(items: Vec<Value>) -> Result<Value, Error> {
    sequence(items, false)
}

pub fn tuple(items: Vec<Value>) -> Result<Value, Error> {
    sequence(items, true)
}

fn sequence(items: Vec<Value>, tuple: bool) -> Result<Value, Error> {
    charge(items.len() * size_of::<Value>())?;
    let nesting = nesting_above(items.iter())?;
    Ok(Value::from_object(List { items, tuple, nesting }))
}

pub fn dict(members: IndexMap<Value, Value>) -> Result<Value, Error> {
    charge(members.len() * 3 * size_of::<Value>())?;
    let nesting = nesting_above(members.iter().flat_map(|(k, v)| [k, v]))?;
    Ok(Value::from_object(Dict { members, nesting }))
}

/// What MiniJinja's own filters and literals make, as ours. Values that are not data stay as they are.
pub fn normalize(value: Value) -> Result<Value, Error> {
    normalize_within(value, 0)
}

fn normalize_within(value: Value, level: u16) -> Result<Value, Error> {
    let Some(object) = value.as_object() else { return Ok(value) };
    if object.downcast_ref::<List>().is_some() || object.downcast_ref::<Dict>().is_some() {
        return Ok(value);
    }
    if level > MAX_DEPTH {
        return Err(invalid(format!("{TOO_LARGE}values nest deeper than {MAX_DEPTH} levels")));
    }
    match object.repr() {
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            let items: Result<Vec<_>, _> = value
                .try_iter()?
                .map(|item| {
                    charge(size_of::<Value>())?;
                    normalize_within(item, level + 1)
                })
                .collect();
            list(items?)
        }
        _ => Ok(value),
    }
}

/// Refuses what a namespace must not hold, because it could hold the namespace.
pub fn storable(value: Value) -> Result<Value, Error> {
    let value = normalize(value)?;
    if nesting(&value).opaque {
        return Err(invalid("only data can be stored in a namespace"));
    }
    Ok(value)
}

pub fn from_json(json: serde_json::Value) -> Result<Value, Error> {
    use serde_json::Value as Json;
    Ok(match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (_, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s),
        Json::Array(items) => list(items.into_iter().map(from_json).collect::<Result<_, _>>()?)?,
        Json::Object(members) => dict(
            members
                .into_iter()
                .map(|(k, v)| Ok((Value::from(k), from_json(v)?)))
                .collect::<Result<_, Error>>()?,
        )?,
    })
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_items(f, &self.items, self.tuple)
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Dict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_members(f, self.members.iter().map(|(k, v)| (k.clone(), v.clone())))
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.members.get(key).cloned()
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|this| Box::new(this.members.keys().cloned()))
    }
    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.members.len())
    }
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn write_items(out: &mut impl Write, items: &[Value], tuple: bool) -> fmt::Result {
    out.write_char(if tuple { '(' } else { '[' })?;
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.write_str(", ")?;
        }
        write_repr(out, item)?;
    }
    if tuple && items.len() == 1 {
        out.write_char(',')?;
    }
    out.write_char(if tuple { ')' } else { ']' })
}

fn write_members(
    out: &mut impl Write,
    members: impl Iterator<Item = (Value, Value)>,
) -> fmt::Result {
    out.write_char('{')?;
    for (i, (key, value)) in members.enumerate() {
        if i > 0 {
            out.write_str(", ")?;
        }
        write_repr(out, &key)?;
        out.write_str(": ")?;
        write_repr(out, &value)?;
    }
    out.write_char('}')
}

/// Python's `str(value)`.
pub fn write_str(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => write_repr(out, value),
    }
}

/// Python's `repr(value)`.
pub fn write_repr(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            out.write_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN)))
        }
        ValueKind::Seq => match value.downcast_object_ref::<List>() {
            Some(list) => write_items(out, &list.items, list.tuple),
            None => match value.try_iter() {
                Ok(items) => write_items(out, &items.collect::<Vec<_>>(), false),
                Err(_) => Ok(()),
            },
        },
        ValueKind::Map => match value.downcast_object_ref::<Dict>() {
            Some(dict) => write!(out, "{dict:?}"),
            None => match (value.is_kwargs(), value.as_object().and_then(DynObject::try_iter_pairs)) {
                (true, Some(pairs)) => write_members(out, pairs),
                _ => out.write_str("<object>"),
            },
        },
        ValueKind::Plain => out.write_str("<object>"),
        _ => write!(out, "{value}"),
    }
}

pub fn str(value: &Value) -> String {
    let mut text = String::new();
    let _ = write_str(&mut text, value);
    text
}

fn is_printable(c: char) -> bool {
    c == ' '
        || !(c.is_control()
            || c.is_whitespace()
            || matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
                | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}'
                | '\u{fff0}'..='\u{fffb}' | '\u{fffe}'..='\u{ffff}' | '\u{e0000}'..='\u{10ffff}'))
}

fn write_quoted(out: &mut impl Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if is_printable(c) => out.write_char(c)?,
            c => match c as u32 {
                n @ 0..=0xff => write!(out, "\\x{n:02x}")?,
                n @ 0x100..=0xffff => write!(out, "\\u{n:04x}")?,
                n => write!(out, "\\U{n:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and
/// from 1e16 on.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') {
        plain
    } else {
        plain + ".0"
    }
}

// ---- Arguments ----

/// A call's arguments, by position or name.
pub struct Args<'a> {
    positional: &'a [Value],
    named: Option<Kwargs>,
}

impl<'a> Args<'a> {
    pub fn new(args: &'a [Value]) -> Args<'a> {
        match args.split_last() {
            Some((last, rest)) if last.is_kwargs() => {
                Args { positional: rest, named: Kwargs::try_from(last.clone()).ok() }
            }
            _ => Args { positional: args, named: None },
        }
    }

    pub fn get(&self, index: usize, name: &str) -> Option<Value> {
        self.positional
            .get(index)
            .cloned()
            .or_else(|| self.named.as_ref()?.peek::<Value>(name).ok())
    }

    pub fn given(&self, index: usize, name: &str) -> Option<Value> {
        self.get(index, name).filter(|v| !v.is_none() && !v.is_undefined())
    }

    pub fn text(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        match self.given(index, name) {
            None => Ok(None),
            Some(v) => match v.as_str() {
                Some(s) => Ok(Some(s.to_string())),
                None => Err(invalid(format!("argument '{name}' must be a string, not {}", v.kind()))),
            },
        }
    }

    pub fn truth(&self, index: usize, name: &str) -> bool {
        self.get(index, name).is_some_and(|v| v.is_true())
    }

    pub fn int(&self, index: usize, name: &str) -> Result<Option<i64>, Error> {
        match self.given(index, name) {
            None => Ok(None),
            Some(v) => integer(&v)
                .and_then(|i| i64::try_from(i).ok())
                .map(Some)
                .ok_or_else(|| invalid(format!("argument '{name}' must be an integer"))),
        }
    }
}

// ---- Operators ----

/// An int or, as in Python, a bool.
pub fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(value.is_true().into()),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

pub fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(if value.is_true() { 1.0 } else { 0.0 }),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn from_i128(n: i128) -> Value {
    i64::try_from(n).map(Value::from).unwrap_or_else(|_| Value::from(n))
}

fn unsupported(op: &str, a: &Value, b: &Value) -> Error {
    if a.is_undefined() || b.is_undefined() {
        return Error::new(ErrorKind::UndefinedError, format!("an operand of '{op}' is undefined"));
    }
    invalid(format!("'{op}' does not go between {} and {}", a.kind(), b.kind()))
}

fn text_of(size: usize, safe: bool, fill: impl FnOnce(&mut String)) -> Result<Value, Error> {
    charge(size)?;
    let mut text = String::with_capacity(size);
    fill(&mut text);
    Ok(if safe { Value::from_safe_string(text) } else { Value::from(text) })
}

/// `markupsafe.escape`.
pub fn escape(text: &str) -> Result<String, Error> {
    charge(text.len() * 5)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// What a loop runs over. Undefined is empty, as everywhere, but None is an error.
pub fn iterable(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
            Err(invalid(format!("'{}' is not iterable", value.kind())))
        }
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            charge(text.len() * size_of::<Value>())?;
            list(text.chars().map(|c| Value::from(c.to_string())).collect())
        }
        _ => Ok(value),
    }
}

fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

pub fn concat(a: &Value, b: &Value) -> Result<Value, Error> {
    charge(size(a) + size(b))?;
    let mut text = str(a);
    let _ = write_str(&mut text, b);
    charge(text.len())?;
    Ok(Value::from(text))
}

pub fn add(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        // Markup, which |safe makes, escapes what is added to it.
        if a.is_safe() != b.is_safe() {
            let escape = |v: &Value, s: &str| if v.is_safe() { Ok(s.to_string()) } else { escape(s) };
            return Ok(Value::from_safe_string(escape(a, x)? + &escape(b, y)?));
        }
        return text_of(x.len() + y.len(), a.is_safe(), |text| {
            text.push_str(x);
            text.push_str(y);
        });
    }
    if let (Some(x), Some(y)) = (integer(a), integer(b)) {
        return x.checked_add(y).map(from_i128).ok_or_else(|| invalid("integer overflow"));
    }
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return Ok(Value::from(x + y));
    }
    if is_sequence(a) && is_sequence(b) {
        return list(a.try_iter()?.chain(b.try_iter()?).collect());
    }
    Err(unsupported("+", a, b))
}

pub fn multiply(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (integer(a), integer(b)) {
        return x.checked_mul(y).map(from_i128).ok_or_else(|| invalid("integer overflow"));
    }
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return Ok(Value::from(x * y));
    }
    let (repeated, times) = if integer(b).is_some() { (a, b) } else { (b, a) };
    let times = integer(times).ok_or_else(|| unsupported("*", a, b))?;
    let times = usize::try_from(times.clamp(0, u32::MAX.into())).unwrap_or(0);
    if let Some(text) = repeated.as_str() {
        return text_of(text.len().saturating_mul(times), repeated.is_safe(), |out| {
            for _ in 0..times {
                out.push_str(text);
            }
        });
    }
    if is_sequence(repeated) {
        let items: Vec<Value> = repeated.try_iter()?.collect();
        charge(items.len().saturating_mul(times).saturating_mul(size_of::<Value>()))?;
        return list(items.iter().cycle().take(items.len() * times).cloned().collect());
    }
    Err(unsupported("*", a, b))
}

/// `/`, which makes a float even of two ints.
pub fn divide(a: &Value, b: &Value) -> Result<Value, Error> {
    match (number(a), number(b)) {
        (Some(_), Some(0.0)) => Err(invalid("division by zero")),
        (Some(x), Some(y)) => Ok(Value::from(x / y)),
        _ => Err(unsupported("/", a, b)),
    }
}

pub fn floor_divide(a: &Value, b: &Value) -> Result<Value, Error> {
    match (integer(a), integer(b)) {
        (Some(_), Some(0)) => Err(invalid("integer division by zero")),
        (Some(x), Some(y)) => {
            let (quotient, remainder) = (x.wrapping_div(y), x.wrapping_rem(y));
            Ok(from_i128(quotient - i128::from(remainder != 0 && (remainder < 0) != (y < 0))))
        }
        _ => match (number(a), number(b)) {
            (Some(_), Some(0.0)) => Err(invalid("float division by zero")),
            (Some(x), Some(y)) => Ok(Value::from((x / y).floor())),
            _ => Err(unsupported("//", a, b)),
        },
    }
}

/// `%`: formatting for text, the remainder with the divisor's sign for numbers.
pub fn remainder(state: &State, a: &Value, b: &Value) -> Result<Value, Error> {
    if a.as_str().is_some() {
        let mut args = vec![a.clone()];
        match b.downcast_object_ref::<List>() {
            Some(list) => args.extend(list.items.iter().cloned()),
            None => args.push(b.clone()),
        }
        return state.apply_filter("format", &args);
    }
    match (integer(a), integer(b)) {
        (Some(_), Some(0)) => Err(invalid("integer modulo by zero")),
        (Some(x), Some(y)) => {
            let rest = x.wrapping_rem(y);
            Ok(from_i128(if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest }))
        }
        _ => match (number(a), number(b)) {
            (Some(_), Some(0.0)) => Err(invalid("float modulo")),
            (Some(x), Some(y)) => {
                let rest = x % y;
                Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }))
            }
            _ => Err(unsupported("%", a, b)),
        },
    }
}

/// `value[start:stop:step]`.
pub fn slice(value: &Value, bounds: &[Value]) -> Result<Value, Error> {
    let bound = |i: usize| -> Result<Option<i64>, Error> {
        match bounds.get(i).filter(|v| !v.is_none()) {
            None => Ok(None),
            Some(v) => integer(v)
                .map(|n| Some(n.clamp(i64::MIN.into(), i64::MAX.into()) as i64))
                .ok_or_else(|| invalid("slice indices must be integers or None")),
        }
    };
    let step = bound(2)?.unwrap_or(1);
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    charge(size(value))?;
    let characters: Vec<char>;
    let items: Vec<Value>;
    let length = match value.as_str() {
        Some(text) => {
            characters = text.chars().collect();
            items = Vec::new();
            characters.len()
        }
        None if is_sequence(value) => {
            characters = Vec::new();
            items = value.try_iter()?.collect();
            items.len()
        }
        None if value.is_undefined() => {
            return Err(Error::new(ErrorKind::UndefinedError, "the sliced value is undefined"))
        }
        None => return Err(invalid(format!("{} cannot be sliced", value.kind()))),
    };
    let length = length as i64;
    // Python's PySlice_AdjustIndices.
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |index: Option<i64>, default: i64| match index {
        None => default,
        Some(i) if i < 0 => i.saturating_add(length).clamp(low, high),
        Some(i) => i.clamp(low, high),
    };
    let mut at = place(bound(0)?, if step > 0 { low } else { high });
    let stop = place(bound(1)?, if step > 0 { high } else { low });
    let mut picked = Vec::new();
    while if step > 0 { at < stop } else { at > stop } {
        picked.push(at as usize);
        at = at.saturating_add(step);
    }
    if value.as_str().is_some() {
        Ok(Value::from(picked.into_iter().map(|i| characters[i]).collect::<String>()))
    } else {
        list(picked.into_iter().map(|i| items[i].clone()).collect())
    }
}

/// `value[key]`, for what MiniJinja would read differently.
pub fn item(value: &Value, key: &Value) -> Result<Value, Error> {
    if let (Some(text), Some(index)) = (value.as_str(), integer(key)) {
        charge(text.len())?;
        let count = text.chars().count() as i128;
        let index = if index < 0 { index + count } else { index };
        return Ok(usize::try_from(index)
            .ok()
            .and_then(|i| text.chars().nth(i))
            .map_or(Value::UNDEFINED, |c| Value::from(c.to_string())));
    }
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    if value.kind() == ValueKind::Iterable {
        return item(&normalize(value.clone())?, key);
    }
    value.get_item(key)
}

/// Names that Jinja finds on every dictionary before it looks among its keys.
pub const DICT_METHODS: [&str; 11] = [
    "clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update",
    "values",
];

/// A method that was named but not called: true, and nothing else.
#[derive(Debug)]
struct BoundMethod;

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// `value.name` where name is one of `DICT_METHODS`.
pub fn dict_attribute(value: &Value, name: &str) -> Result<Value, Error> {
    if value.downcast_object_ref::<Dict>().is_some() {
        return Ok(Value::from_object(BoundMethod));
    }
    value.get_attr(name)
}

/// About how many bytes an operation on the value may read.
pub fn size(value: &Value) -> usize {
    if let Some(text) = value.as_str() {
        text.len()
    } else if let Some(list) = value.downcast_object_ref::<List>() {
        list.items.iter().map(|v| size(v) + size_of::<Value>()).sum()
    } else if let Some(dict) = value.downcast_object_ref::<Dict>() {
        dict.members.iter().map(|(k, v)| size(k) + size(v) + size_of::<Value>()).sum()
    } else {
        value.len().unwrap_or(0) * size_of::<Value>()
    }
}

// ---- Jinja's small helpers ----

/// `cycler(a, b, ...)`: `next()` gives one after another, round and round.
#[derive(Debug)]
pub struct Cycler {
    pub items: Vec<Value>,
    pub at: AtomicUsize,
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.items[self.at.load(Relaxed)].clone())
    }
    fn call_method(self: &Arc<Self>, _: &State, method: &str, _: &[Value]) -> Result<Value, Error> {
        let at = self.at.load(Relaxed);
        match method {
            "next" => {
                self.at.store((at + 1) % self.items.len(), Relaxed);
                Ok(self.items[at].clone())
            }
            "reset" => {
                self.at.store(0, Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// `joiner(', ')`: nothing at its first call, the separator at every other.
#[derive(Debug)]
pub struct Joiner {
    pub separator: Value,
    pub used: AtomicBool,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
    fn call(self: &Arc<Self>, _: &State, _: &[Value]) -> Result<Value, Error> {
        Ok(if self.used.swap(true, Relaxed) { self.separator.clone() } else { Value::from("") })
    }
}

// ---- json.dumps ----

pub struct Dumps {
    pub ensure_ascii: bool,
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

impl Dumps {
    pub fn write(&self, out: &mut String, value: &Value, level: usize) -> Result<(), Error> {
        charge(8)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => {
                let text = float(f64::try_from(value.clone()).unwrap_or(f64::NAN));
                out.push_str(match text.as_str() {
                    "nan" => "NaN",
                    "inf" => "Infinity",
                    "-inf" => "-Infinity",
                    finite => finite,
                });
            }
            ValueKind::String => self.write_text(out, value.as_str().unwrap_or_default())?,
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_parts(out, ('[', ']'), &items, level, |out, item| {
                    self.write(out, item, level + 1)
                })?;
            }
            ValueKind::Map => {
                let Some(dict) = value.downcast_object_ref::<Dict>() else {
                    return Err(invalid("this object is not JSON serializable"));
                };
                let mut members: Vec<(String, &Value)> = dict
                    .members
                    .iter()
                    .map(|(key, value)| Ok((json_key(key)?, value)))
                    .collect::<Result<_, Error>>()?;
                if self.sort_keys {
                    members.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.write_parts(out, ('{', '}'), &members, level, |out, (key, value)| {
                    self.write_text(out, key)?;
                    out.push_str(&self.key_separator);
                    self.write(out, value, level + 1)
                })?;
            }
            ValueKind::Undefined => return Err(invalid("an undefined value is not JSON serializable")),
            kind => return Err(invalid(format!("a {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn write_parts<T>(
        &self,
        out: &mut String,
        (open, close): (char, char),
        parts: &[T],
        level: usize,
        mut write: impl FnMut(&mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.break_line(out, level + 1)?;
            write(out, part)?;
        }
        if !parts.is_empty() {
            self.break_line(out, level)?;
        }
        out.push(close);
        Ok(())
    }

    fn break_line(&self, out: &mut String, level: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            charge(indent.len() * level)?;
            out.push('\n');
            for _ in 0..level {
                out.push_str(indent);
            }
        }
        Ok(())
    }

    fn write_text(&self, out: &mut String, text: &str) -> Result<(), Error> {
        charge(text.len())?;
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
        Ok(())
    }
}

fn json_key(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_string(),
        ValueKind::None => "null".into(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number => str(key),
        kind => return Err(invalid(format!("JSON keys must be strings or numbers, not {kind}"))),
    })
}

// ---- Methods ----

pub fn call_method(
    _state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    charge(size(value) + 16)?;
    if let Some(text) = value.as_str() {
        text_method(text, method, args)
    } else if let Some(dict) = value.downcast_object_ref::<Dict>() {
        dict_method(dict, method, args)
    } else if is_sequence(value) {
        list_method(value, method, args)
    } else if value.is_undefined() {
        Err(Error::new(ErrorKind::UndefinedError, format!("method '{method}' of an undefined value")))
    } else {
        Err(Error::new(ErrorKind::UnknownMethod, format!("{} has no method '{method}'", value.kind())))
    }
}

fn dict_method(dict: &Dict, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Args::new(args);
    match method {
        "get" => {
            let key = args.get(0, "key").ok_or_else(|| invalid("get expects a key"))?;
            Ok(match dict.members.get(&key) {
                Some(value) => value.clone(),
                None => args.get(1, "default").unwrap_or_else(|| Value::from(())),
            })
        }
        "keys" => list(dict.members.keys().cloned().collect()),
        "values" => list(dict.members.values().cloned().collect()),
        "items" => list(
            dict.members
                .iter()
                .map(|(k, v)| tuple(vec![k.clone(), v.clone()]))
                .collect::<Result<_, _>>()?,
        ),
        "copy" => self::dict(dict.members.clone()),
        _ => match dict.members.get(&Value::from(method)) {
            Some(_) => Err(invalid(format!("'{method}' of this dictionary is not callable"))),
            None => Err(Error::new(
                ErrorKind::UnknownMethod,
                format!("a dictionary has no method '{method}'"),
            )),
        },
    }
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let wanted = Args::new(args).get(0, "value");
    match (method, wanted) {
        ("count", Some(wanted)) => Ok(Value::from(value.try_iter()?.filter(|v| *v == wanted).count())),
        ("index", Some(wanted)) => value
            .try_iter()?
            .position(|v| v == wanted)
            .map(Value::from)
            .ok_or_else(|| invalid("the value is not in the list")),
        ("copy", None) => list(value.try_iter()?.collect()),
        ("append" | "extend" | "insert" | "remove" | "pop" | "clear" | "sort" | "reverse", _) => {
            Err(invalid(format!("'{method}' would change a list, which templates must not")))
        }
        _ => Err(Error::new(ErrorKind::UnknownMethod, format!("a list has no method '{method}'"))),
    }
}

/// What `str.strip` takes off: Unicode's white space and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn text_method(text: &str, method: &str, raw: &[Value]) -> Result<Value, Error> {
    let args = Args::new(raw);
    let needed = |i: usize, name: &str| {
        args.text(i, name)?.ok_or_else(|| invalid(format!("{method} expects '{name}'")))
    };
    let all = |test: fn(char) -> bool| Value::from(!text.is_empty() && text.chars().all(test));
    let position = |byte: usize| text[..byte].chars().count() as i64;

    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let set = args.text(0, "chars")?;
            let out = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(c));
            Value::from(match method {
                "strip" => text.trim_matches(out),
                "lstrip" => text.trim_start_matches(out),
                _ => text.trim_end_matches(out),
            })
        }
        "upper" => Value::from(text.to_uppercase()),
        "lower" | "casefold" => Value::from(text.to_lowercase()),
        "swapcase" => Value::from(
            text.chars()
                .map(|c| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() })
                .collect::<String>(),
        ),
        "capitalize" => {
            let mut rest = text.chars();
            let first = rest.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
            Value::from(first + &rest.as_str().to_lowercase())
        }
        "title" => {
            let mut out = String::with_capacity(text.len());
            let mut inside = false;
            for c in text.chars() {
                if inside {
                    out.extend(c.to_lowercase());
                } else {
                    out.extend(c.to_uppercase());
                }
                inside = c.is_alphabetic();
            }
            Value::from(out)
        }
        "startswith" | "endswith" => {
            let matches = |v: &Value| {
                v.as_str().map(|s| match method {
                    "startswith" => text.starts_with(s),
                    _ => text.ends_with(s),
                })
            };
            let wanted = args.get(0, "prefix").ok_or_else(|| invalid(format!("{method} expects text")))?;
            match matches(&wanted) {
                Some(found) => Value::from(found),
                None if is_sequence(&wanted) => {
                    Value::from(wanted.try_iter()?.any(|v| matches(&v) == Some(true)))
                }
                None => return Err(invalid(format!("{method} expects text, not {}", wanted.kind()))),
            }
        }
        "removeprefix" => {
            let prefix = needed(0, "prefix")?;
            Value::from(text.strip_prefix(prefix.as_str()).unwrap_or(text))
        }
        "removesuffix" => {
            let suffix = needed(0, "suffix")?;
            Value::from(text.strip_suffix(suffix.as_str()).unwrap_or(text))
        }
        "replace" => {
            let (old, new) = (needed(0, "old")?, needed(1, "new")?);
            replace(text, &old, &new, args.int(2, "count")?)?
        }
        "split" | "rsplit" => {
            let limit = args.int(1, "maxsplit")?.unwrap_or(-1);
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            charge(text.len() * 4)?;
            let parts = match args.text(0, "sep")? {
                Some(sep) if sep.is_empty() => return Err(invalid("empty separator")),
                Some(sep) if method == "split" => {
                    text.splitn(limit.saturating_add(1), sep.as_str()).map(Value::from).collect()
                }
                Some(sep) => {
                    let mut parts: Vec<Value> =
                        text.rsplitn(limit.saturating_add(1), sep.as_str()).map(Value::from).collect();
                    parts.reverse();
                    parts
                }
                None if method == "split" => split_words(text, limit),
                None => rsplit_words(text, limit),
            };
            list(parts)?
        }
        "splitlines" => {
            let keep = args.truth(0, "keepends");
            list(lines(text, keep).into_iter().map(Value::from).collect())?
        }
        "partition" | "rpartition" => {
            let sep = needed(0, "sep")?;
            let found = if method == "partition" { text.find(&sep) } else { text.rfind(&sep) };
            let parts = match found {
                Some(at) => [&text[..at], &sep, &text[at + sep.len()..]],
                None if method == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            tuple(parts.into_iter().map(Value::from).collect())?
        }
        "find" | "index" | "rfind" | "rindex" => {
            let wanted = needed(0, "sub")?;
            let from = args.int(1, "start")?.unwrap_or(0).max(0) as usize;
            let start = text.char_indices().nth(from).map_or(text.len(), |(i, _)| i);
            let found = if method.starts_with('r') {
                text[start..].rfind(&wanted)
            } else {
                text[start..].find(&wanted)
            };
            match found {
                Some(at) => Value::from(position(start + at)),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(invalid("substring not found")),
            }
        }
        "count" => {
            let wanted = needed(0, "sub")?;
            Value::from(match wanted.is_empty() {
                true => text.chars().count() + 1,
                false => text.matches(wanted.as_str()).count(),
            })
        }
        "join" => {
            let parts = args.get(0, "iterable").ok_or_else(|| invalid("join expects a list"))?;
            charge(size(&parts))?;
            let mut out = String::new();
            for (i, part) in parts.try_iter()?.enumerate() {
                let Some(part) = part.as_str() else {
                    return Err(invalid(format!("item {i} of join is no string but {}", part.kind())));
                };
                if i > 0 {
                    charge(text.len())?;
                    out.push_str(text);
                }
                out.push_str(part);
            }
            Value::from(out)
        }
        "ljust" | "rjust" | "center" | "zfill" => {
            let width = usize::try_from(args.int(0, "width")?.unwrap_or(0)).unwrap_or(0);
            let fill = if method == "zfill" { "0".into() } else { args.text(1, "fillchar")?.unwrap_or(" ".into()) };
            let missing = width.saturating_sub(text.chars().count());
            let left = match method {
                "ljust" => 0,
                // Python puts the odd one left only when the width is odd.
                "center" => missing / 2 + (missing & width & 1),
                _ => missing,
            };
            charge(missing.saturating_mul(fill.len()))?;
            match text.strip_prefix(['+', '-']).filter(|_| method == "zfill") {
                Some(digits) => Value::from(format!("{}{}{digits}", &text[..1], fill.repeat(missing))),
                None => Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))),
            }
        }
        "expandtabs" => Value::from(text.replace('\t', "        ")),
        "isspace" => all(is_space),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => Value::from(text.is_ascii()),
        "isprintable" => Value::from(text.chars().all(is_printable)),
        "isidentifier" => Value::from(
            !text.starts_with(|c: char| c.is_numeric())
                && !text.is_empty()
                && text.chars().all(|c| c == '_' || c.is_alphanumeric()),
        ),
        "isupper" => Value::from(text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)),
        "islower" => Value::from(text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)),
        "encode" => Value::from_bytes(text.as_bytes().to_vec()),
        "format" => format(minijinja::FormatStyle::StrFormat, text, raw)?,
        _ => {
            return Err(Error::new(ErrorKind::UnknownMethod, format!("a string has no method '{method}'")))
        }
    })
}

pub fn replace(text: &str, old: &str, new: &str, count: Option<i64>) -> Result<Value, Error> {
    let limit = usize::try_from(count.unwrap_or(-1)).unwrap_or(usize::MAX);
    let found = match old.is_empty() {
        true => text.chars().count() + 1,
        false => text.matches(old).count(),
    }
    .min(limit);
    charge(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(Value::from(text.replacen(old, new, limit)))
}

/// Both of Python's ways to fill in text, with widths kept in reason before anything is allocated.
pub fn format(style: minijinja::FormatStyle, text: &str, args: &[Value]) -> Result<Value, Error> {
    const MAX_WIDTH: i128 = 10_000;
    let digits = text.split(|c: char| !c.is_ascii_digit());
    if digits.into_iter().any(|run| run.len() > 5)
        || (text.contains('*') && args.iter().filter_map(integer).any(|n| n.abs() > MAX_WIDTH))
    {
        return Err(invalid(format!("{TOO_LARGE}a width to format to is over {MAX_WIDTH}")));
    }
    charge(text.len() * 16 + args.iter().map(size).sum::<usize>())?;
    minijinja::format_filter(style, text, args).map(Value::from)
}

fn split_words(text: &str, limit: usize) -> Vec<Value> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if words.len() == limit {
            words.push(Value::from(rest));
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        words.push(Value::from(&rest[..end]));
        rest = rest[end..].trim_start_matches(is_space);
    }
    words
}

fn rsplit_words(text: &str, limit: usize) -> Vec<Value> {
    let mut words = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if words.len() == limit {
            words.push(Value::from(rest));
            break;
        }
        let start = rest.char_indices().rfind(|&(_, c)| is_space(c)).map_or(0, |(i, c)| i + c.len_utf8());
        words.push(Value::from(&rest[start..]));
        rest = rest[..start].trim_end_matches(is_space);
    }
    words.reverse();
    words
}

/// `str.splitlines`, with all of its line ends.
pub fn lines(text: &str, keep: bool) -> Vec<&str> {
    const ENDS: [char; 10] = [
        '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}',
    ];
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((at, end)) = rest.char_indices().find(|(_, c)| ENDS.contains(c)) {
        let mut next = at + end.len_utf8();
        if end == '\r' && rest[next..].starts_with('\n') {
            next += 1;
        }
        found.push(&rest[..if keep { next } else { at }]);
        rest = &rest[next..];
    }
    if !rest.is_empty() {
        found.push(rest);
    }
    found
}
