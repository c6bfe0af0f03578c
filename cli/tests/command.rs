//! The command as its user types it: what it writes, what it refuses, and with which exit status.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn evenkeel(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    command.args(arguments).env_remove("EVENKEEL_DATA").env_remove("EVENKEEL_ISA");
    command
}

fn run(arguments: &[&str]) -> Output {
    evenkeel(arguments).output().unwrap()
}

/// A run that must fail with this status, say these words on standard error, and say nothing else anywhere.
fn refuses(arguments: &[&str], status: i32, words: &[&str]) {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{arguments:?}: {word:?} is not in {error:?}");
    }
    assert!(!error.contains("panicked"), "{arguments:?}: {error}");
}

/// `compare` into `folder` with more arguments.
fn compare<'a>(folder: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["compare", "--out", folder][..], more].concat()
}

/// Four files in MNIST's form with `train` and `test` images of 4 x 3 pixels.
fn write_idx(folder: &Path, train: usize, test: usize) {
    for (stem, n) in [("train", train), ("t10k", test)] {
        let count = u32::try_from(n).unwrap().to_be_bytes();
        let mut images = [&[0, 0, 8, 3][..], &count, &[0, 0, 0, 4], &[0, 0, 0, 3]].concat();
        images.extend((0..12 * n).map(|i| u8::try_from(i * 37 % 251).unwrap()));
        let mut labels = [&[0, 0, 8, 1][..], &count].concat();
        labels.extend((0..n).map(|i| u8::try_from(i % 10).unwrap()));
        fs::write(folder.join(format!("{stem}-images-idx3-ubyte")), images).unwrap();
        fs::write(folder.join(format!("{stem}-labels-idx1-ubyte")), labels).unwrap();
    }
}

#[test]
fn the_same_seed_writes_the_same_folder_with_any_threads() {
    let folder = tempfile::tempdir().unwrap();
    let files = [
        "config.json",
        "metrics.csv",
        "curves.svg",
        "curves.png",
        "drift.csv",
        "drift.svg",
        "drift.png",
        "gradients.csv",
        "gradients.svg",
        "gradients.png",
    ];
    let read = |threads: &str| -> Vec<Vec<u8>> {
        let out = folder.path().join(threads);
        let output = run(&compare(out.to_str().unwrap(), &["--epochs", "2", "--threads", threads, "--seed", "3"]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "no progress in a pipe");
        assert!(out.join("times.csv").is_file());
        files.iter().map(|name| fs::read(out.join(name)).unwrap()).collect()
    };
    let one = read("1");
    let metrics = String::from_utf8(one[1].clone()).unwrap();
    assert_eq!(metrics.lines().count(), 5, "{metrics}");
    assert!(!String::from_utf8_lossy(&one[0]).contains("threads"));
    for threads in ["2", "4"] {
        for (name, (a, b)) in files.iter().zip(one.iter().zip(read(threads))) {
            assert!(*a == b, "{name} differs between 1 and {threads} threads");
        }
    }
}

#[test]
fn json_is_one_object_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    write_idx(data.path(), 40, 20);
    let source = format!("idx:{}", data.path().display());
    let out = folder.path().join("run");
    let more = ["--data", &source, "--format", "json", "--epochs", "1", "--batch-size", "8", "--lab", "mlp100"];
    let output = run(&compare(out.to_str().unwrap(), &more));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(value.is_object());
    }
}

#[test]
fn wrong_usage_is_status_2_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    refuses(&compare(out, &["--lab", "lenet"]), 2, &["lenet", "mlp32"]);
    refuses(&compare(out, &["--data", "cifar"]), 2, &["cifar", "digits"]);
    refuses(&compare(out, &["--epochs", "0"]), 2, &["epochs", "at least 1"]);
    refuses(&compare(out, &["--batch-size", "0"]), 2, &["batch size", "10000"]);
    refuses(&compare(out, &["--batch-size", "10001"]), 2, &["batch size", "10000"]);
    refuses(&compare(out, &["--batch-size", "1"]), 2, &["one value per channel", "at least 2"]);
    refuses(&compare(out, &["--lr", "NaN"]), 2, &["learning rate", "NaN"]);
    refuses(&compare(out, &["--lr", "-0.1"]), 2, &["learning rate", "-0.1"]);
    refuses(&compare(out, &["--lr", "inf"]), 2, &["learning rate", "inf"]);
    refuses(&compare(out, &["--threads", "0"]), 2, &["threads", "1 to 1024"]);
    refuses(&compare(out, &["--optimizer", "adagrad"]), 2, &["adagrad"]);
    refuses(&["contrast"], 2, &["contrast"]);
    refuses(&[], 2, &["Usage"]);
    assert!(!Path::new(out).exists(), "a refused run made its folder");
}

#[test]
fn data_that_is_missing_or_broken_is_status_3() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    refuses(&compare(out, &["--data", "mnist"]), 3, &["mnist", "--data-dir", "EVENKEEL_DATA"]);
    let nowhere = folder.path().join("nowhere");
    refuses(&compare(out, &["--data", "mnist", "--data-dir", nowhere.to_str().unwrap()]), 3, &["nowhere"]);
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let source = format!("idx:{}", data.display());
    refuses(&compare(out, &["--data", &source]), 3, &["train-images", "t10k"]);

    write_idx(&data, 40, 20);
    let images = data.join("train-images-idx3-ubyte");
    let whole = fs::read(&images).unwrap();
    fs::write(&images, &whole[..whole.len() - 1]).unwrap();
    refuses(&compare(out, &["--data", &source]), 3, &["train-images", "expected"]);
    fs::write(&images, [&[9][..], &whole[1..]].concat()).unwrap();
    refuses(&compare(out, &["--data", &source]), 3, &["train-images", "at byte 0"]);
    // A gzip member that ends in the middle.
    fs::write(&images, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x63]).unwrap();
    refuses(&compare(out, &["--data", &source]), 3, &["train-images"]);
    assert!(!Path::new(out).exists(), "a refused run made its folder");
}

#[test]
fn a_folder_that_cannot_be_written_is_status_3() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    refuses(&compare(file.to_str().unwrap(), &["--epochs", "1"]), 3, &["file", "--out"]);
    let below = file.join("run");
    refuses(&compare(below.to_str().unwrap(), &["--epochs", "1"]), 3, &["file", "--out"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "in the way");
    // A folder with files of the user's own is left alone; one with an earlier run is not.
    let own = folder.path().join("own");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("curves.png"), "precious").unwrap();
    refuses(&compare(own.to_str().unwrap(), &["--epochs", "1"]), 3, &["own", "no earlier run", "--out"]);
    assert_eq!(fs::read_to_string(own.join("curves.png")).unwrap(), "precious");
    assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
}

#[test]
fn a_loss_that_breaks_down_is_status_1_and_leaves_what_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    refuses(&compare(out, &["--lr", "1e38", "--epochs", "2"]), 1, &["epoch 1, step ", "not finite", "learning rate"]);
    let metrics = fs::read_to_string(Path::new(out).join("metrics.csv")).unwrap();
    assert_eq!(metrics.lines().count(), 1, "{metrics}");
    assert!(Path::new(out).join("config.json").is_file());
}

#[test]
fn a_model_that_only_the_evaluation_finds_broken_is_status_1() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    // One step in the epoch: no later loss could notice.
    let more = ["--lr", "1e38", "--epochs", "1", "--batch-size", "10000"];
    refuses(&compare(out.to_str().unwrap(), &more), 1, &["epoch 1, step 1", "in evaluation"]);
}

#[test]
fn epochs_without_end_do_not_overflow() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let more = ["--lr", "1e38", "--epochs", "18446744073709551615"];
    refuses(&compare(out.to_str().unwrap(), &more), 1, &["epoch 1", "not finite"]);
}

#[test]
fn a_closed_pipe_does_not_stop_the_work_and_a_full_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    write_idx(data.path(), 40, 20);
    let source = format!("idx:{}", data.path().display());
    let out = folder.path().join("run");
    let arguments = compare(out.to_str().unwrap(), &["--data", &source, "--epochs", "3", "--batch-size", "8"]);
    let mut child = evenkeel(&arguments).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert!(out.join("curves.png").is_file() && out.join("gradients.png").is_file());
    if let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") {
        let status = evenkeel(&arguments).stdout(full).status().unwrap();
        assert_eq!(status.code(), Some(3));
    }
}

#[test]
fn a_name_that_is_no_instruction_set_is_status_2() {
    let output = evenkeel(&["info"]).env("EVENKEEL_ISA", "avx1024").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("avx1024") && error.contains("scalar"), "{error}");
    let capped = evenkeel(&["info", "--format", "json"]).env("EVENKEEL_ISA", "portable").output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&capped.stdout).unwrap();
    assert_eq!(value["isa"], "portable");
}

fn bench<'a>(what: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["bench", what, "--once"][..], more].concat()
}

fn json_lines(text: &[u8]) -> Vec<serde_json::Value> {
    String::from_utf8_lossy(text).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_roof_has_every_instruction_set_and_level() {
    let output = run(&bench("roof", &["--threads", "1,2", "--json", "-"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = json_lines(&output.stdout);
    for threads in [1, 2] {
        let rate = |case: &str, shape: &str, key: &str| {
            let same = |line: &&serde_json::Value| {
                line["case"] == case && line["shape"] == shape && line["threads"].as_u64() == Some(threads)
            };
            assert!(lines.iter().find(same).unwrap()[key].as_f64().unwrap() > 0.0, "{case} {shape}");
        };
        for shape in ["scalar_f32", "scalar_f64", "portable_f32", "portable_f64"] {
            rate("fma", shape, "gflops");
        }
        for case in ["read", "copy", "triad"] {
            for level in ["L1", "L2", "memory"] {
                rate(case, level, "gbps");
            }
        }
    }
    assert_eq!(lines.iter().filter(|line| line["case"] == "noise" && line["trusted"].is_boolean()).count(), 2);
}

#[test]
fn a_bench_refuses_what_it_cannot_do_before_it_measures() {
    let folder = tempfile::tempdir().unwrap();
    refuses(&bench("roof", &["--threads", "1,0"]), 2, &["threads", "1 to 1024"]);
    refuses(&bench("roof", &["--threads", "two"]), 2, &["threads", "two"]);
    refuses(&["bench"], 2, &["Usage", "roof"]);
    refuses(&bench("roof", &["--json", folder.path().to_str().unwrap()]), 3, &["it is a folder", "--json"]);
}

#[test]
fn real_mnist_trains_when_it_is_there() {
    let Some(data) = std::env::var_os("EVENKEEL_DATA") else {
        return println!("skipped: EVENKEEL_DATA is not set");
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let more = ["--data", "mnist", "--data-dir", data.to_str().unwrap(), "--epochs", "1", "--format", "json"];
    let output = run(&compare(out.to_str().unwrap(), &more));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let first: serde_json::Value =
        serde_json::from_str(String::from_utf8(output.stdout).unwrap().lines().next().unwrap()).unwrap();
    assert!(first["validation_accuracy"].as_f64().unwrap() > 0.93, "{first}");
}
