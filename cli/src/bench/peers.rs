//! Times of others, read from JSON lines.

use crate::failure::Failure;
use evenkeel::Error;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// What one library took for some of the jobs, in the order of the file.
pub(crate) struct Peer<J> {
    pub(crate) name: String,
    times: Vec<Time<J>>,
}

struct Time<J> {
    job: J,
    element: String,
    threads: u64,
    seconds: f64,
}

/// Who, if a line says so, and what.
type Named<J> = (Option<String>, Time<J>);

impl<J: PartialEq> Peer<J> {
    /// Its least time for a job, where a file has several.
    pub(crate) fn seconds(&self, job: &J, element: &str, threads: usize) -> Option<f64> {
        let same = |t: &&Time<J>| t.job == *job && t.element == element && t.threads == threads as u64;
        self.times.iter().filter(same).map(|time| time.seconds).min_by(f64::total_cmp)
    }
}

/// Says who has no time for any case that was measured: a job with a number of threads, all of one type.
pub(crate) fn unpaired<'j, J: PartialEq + 'j>(
    peers: &[Peer<J>],
    measured: impl Iterator<Item = (&'j J, usize)> + Clone,
    element: &str,
) -> Option<String> {
    let is_unpaired =
        |peer: &&Peer<J>| measured.clone().all(|(job, threads)| peer.seconds(job, element, threads).is_none());
    let names: Vec<&str> = peers.iter().filter(is_unpaired).map(|peer| peer.name.as_str()).collect();
    let names = (!names.is_empty()).then(|| names.join(", "))?;
    Some(format!("{names}: no time for any of these cases is in the file."))
}

/// The jobs among the lines of a file, by who did them; a line without `peer` goes by the file's name.
///
/// `job` tells which one a case and a shape are, or `None`: such lines are passed over, and lines without text. Those in `taken` are
/// measured now, so that whoever has such a name in the file gets the file's behind it. `wanted` describes a job.
pub(crate) fn read<J>(
    path: &Path,
    taken: &[&str],
    wanted: &'static str,
    job: impl Fn(&str, &str) -> Result<Option<J>, String>,
) -> Result<Vec<Peer<J>>, Failure> {
    let text = fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut peers: Vec<Peer<J>> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |wrong: String| Failure::Line { path: path.display().to_string(), number: index + 1, wrong };
        let Some((name, time)) = parse(line, &job).map_err(wrong)? else { continue };
        let name = match name.as_deref() {
            None => stem.to_string(),
            Some(name) if taken.contains(&name) => format!("{name} ({stem})"),
            Some(name) => name.to_string(),
        };
        match peers.iter_mut().find(|peer| peer.name == name) {
            Some(peer) => peer.times.push(time),
            None => peers.push(Peer { name, times: vec![time] }),
        }
    }
    if peers.is_empty() {
        return Err(Failure::Lacks { path: path.display().to_string(), wanted });
    }
    Ok(peers)
}

/// What a line says; `None` for one of another case.
fn parse<J>(line: &str, job: impl Fn(&str, &str) -> Result<Option<J>, String>) -> Result<Option<Named<J>>, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(keys) = &value else { return Err(format!("not an object: {value}")) };
    let text = |key: &str| match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(other) => Err(format!("\"{key}\" is {other}, not text")),
    };
    let missing = |key: &str| format!("\"{key}\" is missing");
    let case = text("case")?.ok_or_else(|| missing("case"))?;
    let shape = text("shape");
    let found = job(case, shape.as_ref().ok().copied().flatten().unwrap_or_default());
    if let Ok(None) = found {
        return Ok(None);
    }
    let shape = shape?.ok_or_else(|| missing("shape"))?;
    let found = found.map_err(|error| format!("\"shape\" is {shape:?}: {error}"))?;
    let element = text("type")?.unwrap_or("f32").to_string();
    let threads = match keys.get("threads") {
        None => 1,
        Some(threads) => {
            threads.as_u64().ok_or_else(|| format!("\"threads\" is {threads}, not a number of threads"))?
        }
    };
    let median = keys.get("median_us").ok_or_else(|| missing("median_us"))?;
    let seconds = match median.as_f64() {
        // A year at most: more would be nothing but digits.
        Some(us) if us > 0.0 && us < 3.2e13 => us * 1e-6,
        _ => return Err(format!("\"median_us\" is {median}, not a time in microseconds")),
    };
    let name = text("peer")?.filter(|name| !name.is_empty()).map(str::to_string);
    if let Some(name) = name.as_ref().filter(|name| name.chars().count() > 40 || name.chars().any(char::is_control)) {
        return Err(format!("\"peer\" is {name:?}, not a name of at most 40 printable characters"));
    }
    Ok(found.map(|job| (name, Time { job, element, threads, seconds })))
}

#[cfg(test)]
mod tests {
    use super::super::product::Product;
    use super::*;

    fn peers(text: &str) -> Result<Vec<Peer<Product>>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("before.jsonl");
        fs::write(&path, text).unwrap();
        let job = |case: &str, shape: &str| if case == "gemm" { Product::parse(shape).map(Some) } else { Ok(None) };
        read(&path, &["matrixmultiply"], "a product", job).map_err(|failure| failure.to_string())
    }

    #[test]
    fn lines_are_paired_by_shape_type_and_threads() {
        let text = r#"{"peer":"torch","case":"gemm","shape":"32x784x32","threads":1,"median_us":20.5,"gflops":1}
{"peer":"torch","case":"gemm","shape":"32x784x32","threads":1,"median_us":20}
{"peer":"torch","case":"bn_fwd","shape":"32x784","threads":1,"median_us":1}

{"peer":"torch","case":"gemm","shape":"32x784x32","type":"f64","median_us":40}
{"case":"gemm","shape":"784x32x32_tn","threads":4,"median_us":8}
{"peer":"matrixmultiply","case":"gemm","shape":"784x32x32_tn","median_us":8}"#;
        let found = peers(text).unwrap();
        assert_eq!(
            found.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(),
            ["torch", "before", "matrixmultiply (before)"]
        );
        let (plain, tn) = (Product::parse("32x784x32").unwrap(), Product::parse("784x32x32_tn").unwrap());
        assert_eq!(found[0].seconds(&plain, "f32", 1), Some(20.0 * 1e-6));
        assert_eq!(found[0].seconds(&plain, "f64", 1), Some(40.0 * 1e-6));
        assert_eq!(found[0].seconds(&plain, "f32", 4), None);
        assert_eq!(found[0].seconds(&tn, "f32", 1), None);
        assert_eq!(found[1].seconds(&tn, "f32", 4), Some(8.0 * 1e-6));
        let unpaired = |job, element| unpaired(&found, [(job, 1)].into_iter(), element).unwrap_or_default();
        assert!(unpaired(&plain, "f64").starts_with("before, matrixmultiply (before): no time"));
        assert!(unpaired(&tn, "f32").starts_with("torch, before: no time"));
        assert_eq!(super::unpaired(&found[..1], [(&plain, 1), (&tn, 1)].into_iter(), "f32"), None);
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        let good = r#"{"peer":"a","case":"gemm","shape":"8x8x8","threads":1,"median_us":1}"#;
        for (bad, word) in [
            ("{\"peer\"", "not JSON"),
            ("median: 3", "not JSON"),
            ("[1]", "not an object"),
            ("{}", "\"case\" is missing"),
            (r#"{"case":"gemm","median_us":1}"#, "\"shape\" is missing"),
            (r#"{"case":"gemm","shape":"8x8","median_us":1}"#, "8x8"),
            (r#"{"case":"gemm","shape":8,"median_us":1}"#, "\"shape\" is 8"),
            (r#"{"case":"gemm","shape":"8x8x8"}"#, "\"median_us\" is missing"),
            (r#"{"case":"gemm","shape":"8x8x8","median_us":"1"}"#, "\"median_us\" is \"1\""),
            (r#"{"case":"gemm","shape":"8x8x8","median_us":0}"#, "\"median_us\" is 0"),
            (r#"{"case":"gemm","shape":"8x8x8","median_us":1e300}"#, "\"median_us\" is 1e"),
            (r#"{"case":"gemm","shape":"8x8x8","median_us":1,"threads":-1}"#, "\"threads\" is -1"),
            (r#"{"peer":"\u001b[31m","case":"gemm","shape":"8x8x8","median_us":1}"#, "printable"),
        ] {
            let error = peers(&format!("{good}\n\n{bad}\n{good}")).map(|_| ()).unwrap_err();
            assert!(error.contains("before.jsonl: line 3: ") && error.contains(word), "{bad}: {error}");
        }
        for nothing in ["", "\n\n", r#"{"case":"bn_fwd"}"#] {
            let error = peers(nothing).map(|_| ()).unwrap_err();
            assert!(error.ends_with("before.jsonl: not one line is a product"), "{error}");
        }
    }
}
