//! Configuration files: the part of YAML that options need, read by hand so that nothing else can be in them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use dataplane::limits::CONFIG_FILE_BYTES_MAX;

/// A configuration file: `name: value` lines, the part of YAML that options need. It has no `Debug`: a value may be a key.
pub(super) struct Lines(Vec<(String, String)>);

impl Lines {
    /// None if there is no such file.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, String> {
        let fail = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(fail(&e)),
        };
        let mut text = String::new();
        file.take(CONFIG_FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|e| fail(&e))?;
        if text.len() as u64 > CONFIG_FILE_BYTES_MAX {
            return Err(fail(&format_args!("more than {CONFIG_FILE_BYTES_MAX} bytes")));
        }
        Self::parse(&text).map(Some).map_err(|e| fail(&e))
    }

    /// Errors name the line, never its value: it may be a key.
    fn parse(text: &str) -> Result<Self, String> {
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut in_list = false;
        for (at, line) in text.lines().enumerate() {
            let line_number = at + 1;
            let bad = |what: &str| Err(format!("line {line_number}: {what}"));
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') || trimmed == "---" {
                continue;
            }
            if let Some(item) = trimmed.strip_prefix('-')
                && (item.is_empty() || item.starts_with([' ', '\t']))
            {
                // Each is a line of the value.
                let Some((_, value)) = lines.last_mut().filter(|_| in_list) else {
                    return bad("a list stands below the `name:` of an option that takes several values");
                };
                let Some(item) = scalar(item.trim()) else {
                    return bad("the value is not one plain or quoted text");
                };
                value.push_str(&item);
                value.push('\n');
                continue;
            }
            let Some((name, value)) = line.split_once(':') else {
                return bad("not `name: value`");
            };
            if !(value.is_empty() || value.starts_with([' ', '\t'])) {
                return bad("not `name: value`");
            }
            if !super::known(name) {
                return bad("this name is no option");
            }
            if lines.iter().any(|(earlier, _)| earlier == name) {
                return bad("this name stands twice");
            }
            let Some(value) = scalar(value.trim()) else {
                return bad("the value is not one plain or quoted text");
            };
            in_list = value.is_empty() && super::LISTS.contains(&name);
            lines.push((name.to_owned(), value));
        }
        Ok(Self(lines))
    }

    pub(super) fn value(&self, names: &[&str]) -> Option<String> {
        let line = self.0.iter().find(|(name, _)| names.contains(&name.as_str()));
        line.map(|(_, value)| value.clone())
    }
}

/// One YAML scalar without escapes: 'quoted', "quoted" or plain up to ` #`.
pub(super) fn scalar(text: &str) -> Option<String> {
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let (inner, rest) = text[1..].split_once(quote)?;
        let rest = rest.trim();
        let plain = !inner.contains('\\') && (rest.is_empty() || rest.starts_with('#'));
        return plain.then(|| inner.to_owned());
    }
    if text.starts_with(['[', '{', '&', '*', '!', '|', '>', '@', '`']) {
        return None;
    }
    let end = if text.starts_with('#') {
        0
    } else {
        text.find(" #").unwrap_or(text.len())
    };
    Some(text[..end].trim_end().to_owned())
}
