//! `evenkeel gradcheck` as its user types it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::process::{Command, Output};

fn gradcheck(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    command.arg("gradcheck").args(arguments).env_remove("EVENKEEL_ISA").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const SUBJECTS: [&str; 11] = [
    "linear",
    "batchnorm1d",
    "batchnorm2d",
    "relu",
    "cross-entropy",
    "mse",
    "linear-fused",
    "batchnorm-fused",
    "batchnorm-frozen",
    "network",
    "plan",
];

#[test]
fn everything_is_checked_and_right() {
    let output = gradcheck(&["--cases", "20"]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}");
    assert!(output.stderr.is_empty(), "no progress in a pipe");
    for (line, subject) in out.lines().skip(1).zip(SUBJECTS) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((words[0], words[1]), (subject, "20"), "{out}");
        assert!(line.contains(", seed "), "{line}");
        assert!(words.contains(&"ok") && words[2].parse::<u64>().unwrap() > 500, "{line}");
    }
    assert!(
        out.contains("220 cases on ") && out.contains("|analytic - numeric| <= 1e-7 scale + 1e-5 |numeric|"),
        "{out}"
    );
}

#[test]
fn the_same_seed_finds_the_same() {
    let run = |seed| text(&gradcheck(&["--cases", "5", "--format", "json", "--seed", seed]).stdout);
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn as_json_a_line_for_each() {
    // What is named twice is checked once.
    let output = gradcheck(&["--cases", "3", "--format", "json", "mse", "plan", "mse"]);
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (line, layer) in lines.iter().zip(["mse", "plan"]) {
        assert_eq!((&line["layer"], &line["cases"], &line["passed"]), (&layer.into(), &3.into(), &true.into()));
        let worst = &line["worst"];
        assert!(worst["share_of_allowed"].as_f64().unwrap() < 1.0, "{line}");
        assert!(worst["seed"].as_u64().unwrap() < 1 << 53, "{line}");
        let tensors = worst["report"]["tensors"].as_array().unwrap();
        assert!(tensors.iter().all(|t| t["verdict"] == "ok" && t["checked"].as_u64().unwrap() > 0), "{line}");
        assert!(line["first_failure"].is_null());
    }
    assert_eq!(lines[0]["worst_f32"]["report"]["basis"], "f64-twin");
    assert!(lines[1]["worst_f32"].is_null(), "no bound for whole networks");
}

/// With no tolerance at all nothing can be said to be right.
#[test]
fn a_failure_says_how_to_see_it_again() {
    let output = gradcheck(&["--cases", "4", "--seed", "11", "--rtol", "0", "--atol", "0", "linear"]);
    assert_eq!(output.status.code(), Some(1));
    let out = text(&output.stdout);
    assert!(out.contains("linear: 4 of 4 cases failed, the first of them "), "{out}");
    assert!(out.contains("gradient check of Linear(") && out.contains("UNKNOWN"), "{out}");
    let again = "evenkeel gradcheck linear --cases 1 --seed 11 --rtol 0 --atol 0";
    assert!(out.contains(&format!("again: {again}")), "{out}");
    let error = text(&output.stderr);
    assert!(error.contains(&format!("4 gradient checks failed; to see one again:\n  {again}\n")), "{error}");

    let repeated = gradcheck(&again.split(' ').skip(2).collect::<Vec<_>>());
    assert_eq!(repeated.status.code(), Some(1));
    let report =
        |out: &str| out[out.find("gradient check of Linear").unwrap()..out.find("again:").unwrap()].to_string();
    assert_eq!(report(&text(&repeated.stdout)), report(&out));
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (arguments, word) in [
        (&["nothing"][..], "possible values: linear, batchnorm1d"),
        (&["--cases", "0"], "a number of cases, 1 or more"),
        (&["--cases", "-1"], "a number of cases, 1 or more"),
        (&["--rtol", "1"], "a number from 0 to below 1"),
        (&["--atol", "nan"], "a number from 0 to below 1"),
        (&["--seed", "x"], "a whole number from 0 to"),
    ] {
        let output = gradcheck(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
    }
}
