//! Enough JSON to read a request without another crate: values are slices of the request's own text.
//! A program that needs more may use serde_json without std.

fn blank(text: &[u8], mut at: usize) -> usize {
    while at < text.len() && matches!(text[at], b' ' | b'\n' | b'\r' | b'\t') {
        at += 1;
    }
    at
}

fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

fn value_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    match *text.get(at)? {
        b'"' => string_end(text, at),
        b'{' | b'[' => {
            let mut depth = 0usize;
            while at < text.len() {
                match text[at] {
                    b'"' => {
                        at = string_end(text, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            None
        }
        _ => {
            while at < text.len()
                && !matches!(text[at], b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')
            {
                at += 1;
            }
            if at > start {
                Some(at)
            } else {
                None
            }
        }
    }
}

/// The text of the value under `key` of the object `object`; keys are compared as they are written.
pub fn get<'a>(object: &'a str, key: &str) -> Option<&'a str> {
    let text = object.as_bytes();
    let mut at = blank(text, 0);
    if text.get(at) != Some(&b'{') {
        return None;
    }
    at = blank(text, at + 1);
    while text.get(at) == Some(&b'"') {
        let end = string_end(text, at)?;
        let name = object.get(at + 1..end - 1)?;
        at = blank(text, end);
        if text.get(at) != Some(&b':') {
            return None;
        }
        at = blank(text, at + 1);
        let end = value_end(text, at)?;
        if name == key {
            return object.get(at..end);
        }
        at = blank(text, end);
        if text.get(at) != Some(&b',') {
            return None;
        }
        at = blank(text, at + 1);
    }
    None
}

/// The characters of a JSON string; `None` for what is no string.
pub fn string(value: &str) -> Option<String> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next()? {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'u' => {
                let mut code = hex4(&mut chars)?;
                if (0xD800..0xDC00).contains(&code) {
                    let mut ahead = chars.clone();
                    if ahead.next() == Some('\\') && ahead.next() == Some('u') {
                        if let Some(low) = hex4(&mut ahead) {
                            if (0xDC00..0xE000).contains(&low) {
                                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                                chars = ahead;
                            }
                        }
                    }
                }
                out.push(char::from_u32(code).unwrap_or('\u{FFFD}'));
            }
            other => out.push(other),
        }
    }
    Some(out)
}

fn hex4(chars: &mut std::str::Chars) -> Option<u32> {
    let mut code = 0;
    for _ in 0..4 {
        code = code << 4 | chars.next()?.to_digit(16)?;
    }
    Some(code)
}

/// Appends `text` as a JSON string with its quotes.
pub fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if (c as u32) < 0x20 => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.push_str("\\u00");
                out.push(HEX[c as usize >> 4] as char);
                out.push(HEX[c as usize & 15] as char);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
