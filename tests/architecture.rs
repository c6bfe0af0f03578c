//! The shape of the library, checked on its text: rooms import only from below, one room names an instruction set, one file
//! names the thread pool, and every kernel has a specification of the same name.
//!
//! Tests inside `src` are held to the same rules: a test that needs a higher room belongs in `tests/`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// Rooms, low to high. A room imports from lower steps and from itself, not from its own step's other rooms.
const LADDER: &[&[&str]] = &[
    &["error"],
    &["rng", "parallel", "simd", "matrix"],
    &["machine", "tensor"],
    &["kernels", "reference", "data", "io"],
    &["layers", "loss", "optim"],
    &["model"],
    &["train", "gradcheck"],
    &["ffi"],
];

/// Files of `reference/` that specify no kernel of their own.
const WITHOUT_KERNEL: &[(&str, &str)] = &[
    ("linear", "a product and a column sum: the layer's specification, made of two kernels'"),
    ("sum", "the compensated summation that the other specifications use"),
];

fn step(room: &str) -> Option<usize> {
    LADDER.iter().position(|rooms| rooms.contains(&room))
}

#[derive(Debug, PartialEq)]
struct Violation {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

// ---- A lexer for as much of Rust as the rules need.

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    /// `::`
    Path,
    Mark(char),
}

/// Words and marks with their lines; comments, doc comments, strings, characters and lifetimes are left out.
fn lex(source: &str) -> Vec<(Token, usize)> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut line, mut i) = (Vec::new(), 1, 0);
    while i < text.len() {
        let start = i;
        match text[i] {
            '/' if at(i + 1) == '/' => {
                while i < text.len() && text[i] != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= text.len() {
                        break;
                    }
                }
            }
            '"' => i = end_of_string(&text, i),
            '\'' if at(i + 1) == '\\' || (at(i + 2) == '\'' && at(i + 1) != '\'') => {
                // A character: its end is the next quote that no backslash hides.
                i += if at(i + 1) == '\\' { 3 } else { 2 };
                while i < text.len() && text[i] != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' => {
                i += 1;
                while is_word(at(i)) {
                    i += 1;
                }
            }
            c if is_word(c) => {
                while is_word(at(i)) {
                    i += 1;
                }
                let word: String = text[start..i].iter().collect();
                let is_prefix = ["r", "b", "br", "c", "cr"].contains(&word.as_str());
                let mut hashes = 0;
                while is_prefix && word.ends_with('r') && at(i + hashes) == '#' {
                    hashes += 1;
                }
                if is_prefix && at(i + hashes) == '"' && (hashes > 0 || word.ends_with('r')) {
                    i = end_of_raw_string(&text, i + hashes, hashes);
                } else if is_prefix && at(i) == '"' {
                    i = end_of_string(&text, i);
                } else if word == "r" && hashes == 1 {
                    i += 1; // a raw identifier: its name comes next
                } else {
                    tokens.push((Token::Word(word), line));
                }
            }
            ':' if at(i + 1) == ':' => {
                tokens.push((Token::Path, line));
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push((Token::Mark(c), line));
                }
                i += 1;
            }
        }
        i = i.min(text.len());
        line += text[start..i].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

fn end_of_string(text: &[char], quote: usize) -> usize {
    let mut i = quote + 1;
    while i < text.len() && text[i] != '"' {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn end_of_raw_string(text: &[char], quote: usize, hashes: usize) -> usize {
    let mut i = quote + 1;
    while i < text.len() && !(text[i] == '"' && text[i + 1..].iter().take_while(|&&c| c == '#').count() >= hashes) {
        i += 1;
    }
    i + 1 + hashes
}

/// A path as it stands in the code, brace groups multiplied out.
#[derive(Debug)]
struct FoundPath {
    segments: Vec<String>,
    line: usize,
    /// Number of inline modules around it.
    inside: usize,
    /// Whether it is the path of a `use` or an `extern crate`, where one word alone is a path too.
    is_import: bool,
}

fn paths(tokens: &[(Token, usize)]) -> Vec<FoundPath> {
    let word = |i: usize| match tokens.get(i) {
        Some((Token::Word(word), _)) => word.as_str(),
        _ => "",
    };
    let is = |i: usize, token: Token| tokens.get(i).is_some_and(|(t, _)| *t == token);
    let mut found = Vec::new();
    // For each open brace, whether it is that of an inline module.
    let mut braces: Vec<bool> = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let inside = braces.iter().filter(|&&is_module| is_module).count();
        match &tokens[i].0 {
            Token::Mark('{') => {
                braces.push(i >= 2 && word(i - 2) == "mod");
                i += 1;
            }
            Token::Mark('}') => {
                braces.pop();
                i += 1;
            }
            Token::Word(w) if w == "use" && !is(i + 1, Token::Mark('<')) => {
                i = tree(tokens, i + 1, &[], &mut |segments, line| {
                    found.push(FoundPath { segments, line, inside, is_import: true });
                });
            }
            Token::Word(w) if w == "extern" && word(i + 1) == "crate" => {
                let segments = vec![word(i + 2).to_string()];
                found.push(FoundPath { segments, line: tokens[i].1, inside, is_import: true });
                i += 3;
            }
            Token::Word(_) => {
                i = tree(tokens, i, &[], &mut |segments, line| {
                    found.push(FoundPath { segments, line, inside, is_import: false });
                });
            }
            _ => i += 1,
        }
    }
    found
}

/// Reads `a::b::{c, d::e}` from `start` on and reports each path with the words of `before` in front; returns where it ends.
fn tree(
    tokens: &[(Token, usize)],
    start: usize,
    before: &[String],
    report: &mut dyn FnMut(Vec<String>, usize),
) -> usize {
    let mut segments = before.to_vec();
    let mut i = start;
    let line = tokens.get(start).map_or(0, |t| t.1);
    if matches!(tokens.get(i), Some((Token::Path, _))) {
        i += 1; // a leading `::`
    }
    loop {
        match tokens.get(i) {
            Some((Token::Word(word), _)) => {
                segments.push(word.clone());
                i += 1;
            }
            Some((Token::Mark('*'), _)) => {
                segments.push("*".to_string());
                report(segments, line);
                return i + 1;
            }
            Some((Token::Mark('{'), _)) => {
                i += 1;
                while i < tokens.len() && tokens[i].0 != Token::Mark('}') {
                    if tokens[i].0 == Token::Mark(',') {
                        i += 1;
                        continue;
                    }
                    let end = tree(tokens, i, &segments, report);
                    i = end.max(i + 1);
                    // `as name`
                    if matches!(&tokens.get(i), Some((Token::Word(w), _)) if w == "as") {
                        i += 2;
                    }
                }
                return i + 1;
            }
            _ => {
                report(segments, line);
                return i;
            }
        }
        if matches!(tokens.get(i), Some((Token::Path, _))) {
            let goes_on = matches!(tokens.get(i + 1), Some((Token::Word(_) | Token::Mark('*' | '{'), _)));
            i += 1;
            if goes_on {
                continue;
            }
        }
        report(segments, line);
        return i;
    }
}

// ---- The rules.

/// The room that a file of `src` belongs to, and how many modules deep its own module lies; `lib.rs` is no room.
fn place(file: &str) -> (&str, usize) {
    let parts: Vec<&str> = file.split('/').collect();
    let depth = parts.len() - usize::from(parts.last() == Some(&"mod.rs"));
    (parts[0].trim_end_matches(".rs"), depth)
}

fn check_file(file: &str, source: &str) -> Vec<Violation> {
    let (room, depth) = place(file);
    let tokens = lex(source);
    let mut violations = Vec::new();
    let mut fail = |line: usize, what: String| violations.push(Violation { file: file.to_string(), line, what });

    let own = if file == "lib.rs" { None } else { step(room) };
    if own.is_none() && file != "lib.rs" {
        fail(1, format!("the room `{room}` has no place on the ladder"));
    }
    for path in paths(&tokens) {
        let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
        // `crate::x`, or as many `super` as there are modules around.
        let supers = segments.iter().take_while(|&&s| s == "super").count();
        let lowest = match segments.first() {
            Some(&"crate") => segments.get(1),
            Some(&"super") if supers == depth + path.inside => segments.get(supers),
            _ => None,
        };
        if let (Some(&target), Some(own)) = (lowest, own)
            && target != room
        {
            match step(target) {
                None => fail(path.line, format!("`{target}` is no room: name the room, not a re-export of the root")),
                Some(other) if other > own => fail(path.line, format!("`{room}` imports `{target}`, which lies above")),
                Some(other) if other == own => {
                    fail(path.line, format!("`{room}` imports `{target}`, which lies on the same step"));
                }
                Some(_) => {}
            }
        }
        let names = |first: &[&str]| segments.starts_with(first) && (segments.len() > 1 || path.is_import);
        if room != "simd" && (names(&["std", "arch"]) || names(&["core", "arch"]) || names(&["wide"])) {
            fail(path.line, format!("`{}` outside simd/", path.segments.join("::")));
        }
        if file != "parallel/mod.rs" && names(&["rayon"]) {
            fail(path.line, format!("`{}` outside parallel/mod.rs", path.segments.join("::")));
        }
    }
    for (token, line) in &tokens {
        let Token::Word(word) = token else { continue };
        if word == "unsafe" && room != "simd" && !room.starts_with("ffi") {
            fail(*line, "`unsafe` outside simd/ and ffi".to_string());
        }
        if (word == "target_feature" || word.ends_with("_feature_detected")) && room != "simd" {
            fail(*line, format!("`{word}` outside simd/"));
        }
    }
    violations
}

/// Kernels without a specification, and specifications without a kernel; both given as file stems.
fn unpaired(kernels: &BTreeSet<String>, reference: &BTreeSet<String>) -> Vec<String> {
    let excepted: Vec<&str> = WITHOUT_KERNEL.iter().map(|(name, _)| *name).collect();
    let missing = kernels.difference(reference).map(|k| format!("kernels/{k} has no reference/{k}.rs"));
    let surplus = reference.difference(kernels).filter(|r| !excepted.contains(&r.as_str()));
    let stale = excepted.iter().filter(|&&e| kernels.contains(e) || !reference.contains(e));
    missing
        .chain(surplus.map(|r| format!("reference/{r}.rs has no kernels/{r}")))
        .chain(stale.map(|e| format!("`{e}` is excepted without need")))
        .collect()
}

// ---- The library's own text.

fn src() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every Rust file under `src`, by its path from there with `/` between the parts.
fn sources() -> BTreeMap<String, String> {
    fn walk(folder: &Path, prefix: &str, into: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), into);
            } else if name.ends_with(".rs") {
                into.insert(name, std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(&src(), "", &mut files);
    files
}

fn stems(folder: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(src().join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| name.trim_end_matches(".rs").to_string()).filter(|name| name != "mod").collect()
}

#[test]
fn rooms_import_only_from_below_and_keep_to_themselves() {
    let files = sources();
    assert!(files.contains_key("lib.rs") && files.contains_key("kernels/mod.rs"), "the sources were not found");
    let violations: Vec<String> =
        files.iter().flat_map(|(file, source)| check_file(file, source)).map(|v| v.to_string()).collect();
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn every_kernel_has_its_specification() {
    let kernels = stems("kernels");
    assert!(kernels.contains("gemm") && kernels.contains("batchnorm"), "the kernels were not found");
    let found = unpaired(&kernels, &stems("reference"));
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

// ---- The checker, on planted text.

#[track_caller]
fn fails(file: &str, source: &str, line: usize, what: &str) {
    let violations = check_file(file, source);
    assert_eq!(violations.len(), 1, "{source:?}: {violations:?}");
    assert_eq!(violations[0].line, line, "{source:?}: {violations:?}");
    assert!(violations[0].what.contains(what), "{source:?}: {violations:?}");
}

#[track_caller]
fn passes(file: &str, source: &str) {
    let violations = check_file(file, source);
    assert!(violations.is_empty(), "{source:?}: {violations:?}");
}

#[test]
fn upward_and_sideways_imports_are_found_however_they_are_written() {
    fails("kernels/relu.rs", "\nuse crate::layers::Layer;", 2, "`kernels` imports `layers`, which lies above");
    fails("kernels/relu.rs", "use crate::data::Images;", 1, "same step");
    fails("optim.rs", "use crate::{\n    error::Result,\n    model::Sequential,\n};", 3, "`model`");
    fails("optim.rs", "use crate::{error::{Error, Result}, simd::{self as s, Isa}, train};", 1, "`train`");
    fails("tensor.rs", "fn f() -> usize { crate::kernels::gemm::KC }", 1, "`kernels`");
    fails("simd/avx2.rs", "pub(crate) use crate::parallel;", 1, "same step");
    fails("gradcheck/report.rs", "fn f(x: Vec<crate::train::Metrics>) {}", 1, "same step");
    fails("loss.rs", "#[cfg(test)]\nmod tests {\n    use crate::gradcheck;\n}", 3, "`gradcheck`");
    fails("train/mod.rs", "use crate::*;", 1, "`*` is no room");
    fails("train/mod.rs", "use crate::Threads;", 1, "`Threads` is no room");
    // The same by way of `super`.
    fails("optim.rs", "use super::model::Sequential;", 1, "`model`");
    fails("kernels/mod.rs", "use super::layers;", 1, "`layers`");
    fails("kernels/relu.rs", "use super::super::{error, layers::Relu};", 1, "`layers`");
    fails("loss.rs", "mod tests {\n    fn f() {}\n    use super::super::train;\n}", 3, "`train`");

    passes("kernels/relu.rs", "use crate::{error::Error, kernels::BLOCK, parallel, simd::{Isa, Lanes}};");
    passes("kernels/relu.rs", "use super::layers; mod tests { use super::*; use super::super::train; }");
    passes("ffi.rs", "use crate::train::Trainer; use crate::gradcheck;");
    passes("lib.rs", "pub mod train;\npub use train::Trainer;");
    passes("loss.rs", "pub(crate) fn f() {} pub(in crate::loss) fn g() {}");
}

#[test]
fn comments_and_strings_are_not_code() {
    passes(
        "error.rs",
        "//! See [`Layer`](crate::layers::Layer).\n/* use crate::train; /* unsafe */ rayon::join */ fn f() {}",
    );
    passes("error.rs", r##"const A: &str = "crate::train \" unsafe { rayon::x }"; const B: &str = r#"" wide::f "#;"##);
    passes("error.rs", "fn f<'a>(x: &'a str) -> char { let _ = b\"unsafe\"; '\"' }");
    // What comes after them is.
    fails("error.rs", "fn f<'a>(x: &'a str) { let _ = ('\"', '\\'', '\\\\', b'x');\nunsafe { } }", 2, "unsafe");
    fails("error.rs", "/* a\n /* b */ */ use crate::rng;", 2, "`rng`");
    fails("error.rs", "const A: &str = r#\"\n\"\"#; use crate::rng;", 2, "`rng`");
}

#[test]
fn instruction_sets_threads_and_unsafe_stay_in_their_rooms() {
    for source in [
        "use std::arch::x86_64::*;",
        "use core::arch::x86_64::__m256;",
        "use std::{arch, fmt};",
        "fn f() { let _ = std::arch::x86_64::_mm_setzero_ps(); }",
        "use wide;",
        "use wide::f32x4;",
        "use ::wide::{f32x4, f64x2};",
        "extern crate wide;",
        "fn f(x: wide::f32x8) {}",
        "#[target_feature(enable = \"avx2\")] fn f() {}",
        "fn f() -> bool { std::is_x86_feature_detected!(\"avx2\") }",
    ] {
        assert!(!check_file("kernels/relu.rs", source).is_empty(), "{source}");
        passes("simd/avx2.rs", source);
    }
    for source in ["use rayon::prelude::*;", "fn f() { rayon::join(|| (), || ()); }", "use {rayon, std::fmt};"] {
        assert!(!check_file("kernels/gemm/mod.rs", source).is_empty(), "{source}");
        assert!(!check_file("simd/mod.rs", source).is_empty(), "{source}");
        passes("parallel/mod.rs", source);
    }
    for source in
        ["unsafe fn f() {}", "fn f() { unsafe { g() } }", "unsafe impl Send for X {}", "unsafe extern \"C\" {}"]
    {
        fails("parallel/mod.rs", source, 1, "unsafe");
        fails("lib.rs", source, 1, "unsafe");
        passes("simd/mod.rs", source);
        passes("ffi/mod.rs", source);
    }
    passes("kernels/relu.rs", "#![deny(unsafe_code)] fn f(wide: usize) -> usize { let rayon = wide.max(1); rayon }");
}

#[test]
fn a_new_room_must_be_placed_and_a_kernel_needs_its_pair() {
    fails("plot.rs", "fn f() {}", 1, "no place on the ladder");
    fails("plot/svg.rs", "use crate::error::Result;", 1, "no place on the ladder");
    let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    assert!(unpaired(&set(&["gemm"]), &set(&["gemm", "linear", "sum"])).is_empty());
    assert_eq!(unpaired(&set(&["gemm", "conv"]), &set(&["gemm", "linear", "sum"])).len(), 1);
    assert_eq!(unpaired(&set(&["gemm"]), &set(&["gemm", "conv", "linear", "sum"])).len(), 1);
    assert_eq!(unpaired(&set(&["gemm"]), &set(&["gemm", "linear"])).len(), 1);
}
