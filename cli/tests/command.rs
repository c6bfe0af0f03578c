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
    refuses(&compare(out, &["--threads", "0"]), 2, &["threads", "1 to 1024"]);
    refuses(&compare(out, &["--optimizer", "adagrad"]), 2, &["adagrad"]);
    for (option, wrong, wanted) in [
        ("--epochs", "1.5", "a number of epochs, 1 or more"),
        ("--epochs", "-1", "a number of epochs, 1 or more"),
        ("--batch-size", "3x", "a number of examples, 2 or more"),
        ("--lr", "fast", "a number above 0"),
        ("--lr", "0", "a number above 0"),
        ("--lr", "-0.1", "a number above 0"),
        ("--lr", "NaN", "a number above 0"),
        ("--lr", "inf", "a number above 0"),
        ("--seed", "18446744073709551616", "a whole number from 0 to 18446744073709551615"),
        ("--threads", "all", "a number of threads from 1 to 1024"),
    ] {
        refuses(&compare(out, &[option, wrong]), 2, &[option, wrong, "expected", wanted]);
    }
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
        let status = evenkeel(&arguments).stdout(full.try_clone().unwrap()).status().unwrap();
        assert_eq!(status.code(), Some(3));
        for arguments in [&["--help"][..], &["-V"], &["bench", "gemm", "-h"], &["help", "compare"], &["info"]] {
            let output = evenkeel(arguments).stdout(full.try_clone().unwrap()).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{arguments:?}: {error}");
            assert!(error.contains("cannot write to standard output"), "{arguments:?}: {error}");
        }
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
fn products_are_timed_and_the_best_instruction_set_has_no_name() {
    let shapes = ["--shape", "8x9x10", "--shape", "5x7x3_tn", "--shape", "4x33x6_nt"];
    let more = ["--isa", "scalar", "--isa", "portable", "--threads", "1,2,1", "--json", "-"];
    let output = run(&bench("gemm", &[&shapes[..], &more].concat()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // On one processor two threads get a warning.
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.lines().all(|line| line.starts_with("evenkeel: warning: ")), "progress in a pipe: {error}");
    let lines = json_lines(&output.stdout);
    let mut expected = Vec::new();
    for threads in [1, 2] {
        for shape in ["8x9x10", "5x7x3_tn", "4x33x6_nt"] {
            expected.push((threads, shape, None, Some("portable")));
            expected.push((threads, shape, Some("evenkeel-scalar"), Some("scalar")));
            if threads == 1 {
                expected.push((threads, shape, Some("matrixmultiply"), None));
            }
        }
    }
    assert_eq!(lines.len(), expected.len());
    for (line, (threads, shape, peer, isa)) in lines.iter().zip(expected) {
        assert_eq!((line["case"].as_str(), line["type"].as_str()), (Some("gemm"), Some("f32")), "{line}");
        assert_eq!((line["threads"].as_u64(), line["shape"].as_str()), (Some(threads), Some(shape)), "{line}");
        assert_eq!((line["peer"].as_str(), line["isa"].as_str()), (peer, isa), "{line}");
        for key in ["median_us", "min_us", "max_us", "reps", "gflops", "peak_gflops", "percent_of_peak"] {
            assert!(line[key].as_f64().unwrap() > 0.0, "{key} in {line}");
        }
    }
    // What caps the instruction set decides which one is measured.
    let capped = evenkeel(&bench("gemm", &["--shape", "8x8x8", "--dtype", "f64", "--format", "json"]))
        .env("EVENKEEL_ISA", "portable")
        .output()
        .unwrap();
    let lines = json_lines(&capped.stdout);
    assert_eq!(lines.len(), 2);
    assert_eq!((lines[0]["isa"].as_str(), lines[0]["type"].as_str()), (Some("portable"), Some("f64")));
    let above = evenkeel(&bench("gemm", &["--isa", "portable"])).env("EVENKEEL_ISA", "scalar").output().unwrap();
    let error = String::from_utf8_lossy(&above.stderr);
    assert_eq!(above.status.code(), Some(2), "{error}");
    assert!(["--isa", "portable", "at most scalar", "EVENKEEL_ISA"].iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn headings_tell_instruction_sets_apart() {
    let output = run(&bench("gemm", &["--shape", "8x8x8", "--isa", "scalar,portable"]));
    let table = String::from_utf8(output.stdout).unwrap();
    let header = table.lines().nth(2).unwrap();
    for isa in ["scalar", "portable"] {
        for heading in ["us", "GFLOP/s", "of peak"] {
            assert_eq!(header.matches(&format!("  {isa} {heading}")).count(), 1, "{header}");
        }
    }
}

#[test]
fn more_threads_than_can_run_at_once_get_a_warning() {
    let here = std::thread::available_parallelism().unwrap().get();
    for (threads, warned) in [(here, false), (here + 1, true)] {
        let output = run(&bench("gemm", &["--shape", "8x8x8", "--threads", &threads.to_string()]));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        assert_eq!(error.contains(&format!("warning: {threads} threads")), warned, "{error}");
    }
}

#[test]
fn products_beside_others_as_table_lines_and_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (peers, json, plot) = (path("peers.jsonl"), path("ours.jsonl"), path("ours.svg"));
    fs::write(
        &peers,
        "{\"peer\":\"torch\",\"case\":\"gemm\",\"shape\":\"8x8x8\",\"threads\":1,\"median_us\":1e9}\n\
         {\"peer\":\"torch\",\"case\":\"bn_fwd\",\"shape\":\"8x8\",\"median_us\":1}\n",
    )
    .unwrap();
    let shapes = ["--shape", "8x8x8", "--shape", "8x8x9", "--isa", "portable"];
    let files = ["--peers", &peers, "--json", &json, "--plot", &plot];
    let output = run(&bench("gemm", &[&shapes[..], &files].concat()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    let row = |shape: &str| {
        table.lines().find(|line| line.starts_with(shape)).unwrap().split_whitespace().collect::<Vec<_>>()
    };
    assert!(table.lines().nth(2).unwrap().contains("torch"), "{table}");
    assert!(table.lines().next().unwrap().ends_with(", f32, 1 thread"), "{table}");
    assert!(table.contains("Peak on 1 thread, the median of all rows: portable "), "{table}");
    // shape, us, GFLOP/s, share, %, matrixmultiply, torch
    assert!(row("8x8x8")[6].parse::<f64>().unwrap() > 1e6, "{table}");
    assert_eq!(row("8x8x9")[6], "-", "{table}");
    assert_eq!(json_lines(&fs::read(&json).unwrap()).len(), 4);
    assert!(fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "a part of a file was left");
    // An earlier run of ours goes by the name of its file.
    let output = run(&bench("gemm", &[&shapes[..], &["--peers", &json]].concat()));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().nth(2).unwrap().contains("ours"), "{table}");
}

#[test]
fn normalisations_are_timed_in_every_layout_and_pass() {
    let shapes = ["--shape", "9x5", "--shape", "4x3x20", "--shape", "2x3x4x5", "--shape", "3x2x2x2_nhwc"];
    let passes = ["--pass", "forward,backward,frozen,frozen-backward,frozen-backward-sums", "--relu"];
    let more = ["--isa", "scalar", "--isa", "portable", "--threads", "1,2", "--json", "-"];
    let output = run(&bench("batchnorm", &[&shapes[..], &passes, &more].concat()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = json_lines(&output.stdout);
    let mut expected = Vec::new();
    for threads in [1, 2] {
        for (shape, layout) in [
            ("9x5_nc", "nc"),
            ("4x3x20_ncl", "ncl"),
            ("2x3x4x5_nchw", "nchw"),
            ("2x3x4x5_nhwc", "nhwc"),
            ("3x2x2x2_nhwc", "nhwc"),
        ] {
            for (case, reads) in [("fwd", 2), ("bwd", 4), ("eval", 1), ("eval_bwd", 2), ("eval_bwd_sums", 4)] {
                for (peer, isa) in
                    [(None, Some("portable")), (Some("evenkeel-scalar"), Some("scalar")), (Some("textbook"), None)]
                {
                    expected.push((threads, shape, layout, format!("bn_relu_{case}"), reads, peer, isa));
                }
            }
        }
    }
    assert_eq!(lines.len(), expected.len());
    for (line, (threads, shape, layout, case, reads, peer, isa)) in lines.iter().zip(expected) {
        assert_eq!((line["case"].as_str(), line["type"].as_str()), (Some(case.as_str()), Some("f32")), "{line}");
        assert_eq!((line["threads"].as_u64(), line["shape"].as_str()), (Some(threads), Some(shape)), "{line}");
        assert_eq!((line["peer"].as_str(), line["isa"].as_str()), (peer, isa), "{line}");
        assert_eq!((line["layout"].as_str(), line["reads"].as_u64()), (Some(layout), Some(reads)), "{line}");
        for key in ["median_us", "min_us", "max_us", "reps", "gbps", "roof_gbps", "percent_of_roof", "working_set"] {
            assert!(line[key].as_f64().unwrap() > 0.0, "{key} in {line}");
        }
        assert_eq!(line["error_ulp"].is_number(), isa.is_some(), "{line}");
        assert!(isa.is_none() || line["error_ulp"].as_f64().unwrap() < 100.0, "{line}");
    }
    // Without ReLU, in f64, and one layout alone.
    let more = ["--shape", "2x3x4x5", "--layout", "nhwc", "--dtype", "f64", "--isa", "portable", "--json", "-"];
    let lines = json_lines(&run(&bench("batchnorm", &more)).stdout);
    let cases: Vec<_> = lines.iter().map(|line| (line["case"].as_str().unwrap(), line["type"].as_str())).collect();
    assert_eq!(cases, ["bn_fwd", "bn_fwd", "bn_bwd", "bn_bwd"].map(|case| (case, Some("f64"))));
    assert!(lines.iter().all(|line| line["shape"] == "2x3x4x5_nhwc"));
}

#[test]
fn normalisations_beside_others_as_table_lines_and_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (peers, json, csv, plot) = (path("peers.jsonl"), path("ours.jsonl"), path("ours.csv"), path("ours.png"));
    fs::write(
        &peers,
        "{\"peer\":\"torch\",\"case\":\"bn_relu_fwd\",\"shape\":\"8x5x3x3_nhwc\",\"threads\":1,\"median_us\":1e9}\n\
         {\"peer\":\"onednn\",\"case\":\"bn_relu_fwd\",\"shape\":\"8x16x3x3_nChw16c\",\"median_us\":1}\n\
         {\"peer\":\"torch\",\"case\":\"gemm\",\"shape\":\"8x8x8\",\"median_us\":1}\n",
    )
    .unwrap();
    let shapes = ["--shape", "8x5x3x3", "--pass", "forward", "--relu", "--isa", "portable"];
    let files = ["--peers", &peers, "--json", &json, "--csv", &csv, "--plot", &plot];
    let output = run(&bench("batchnorm", &[&shapes[..], &files].concat()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().next().unwrap().ends_with(", f32, with ReLU, 1 thread"), "{table}");
    let header = table.lines().nth(2).unwrap();
    for heading in ["us", "spread", "samples", "GB/s", "roof", "of roof", "error", "textbook", "torch", "noise"] {
        assert!(header.contains(&format!("  {heading}")), "{heading}: {header}");
    }
    assert!(!header.contains("isa") && !header.contains("threads") && !header.contains("onednn"), "{header}");
    let row = |shape: &str| {
        table.lines().find(|line| line.starts_with(shape)).unwrap().split_whitespace().collect::<Vec<_>>()
    };
    // shape, pass, us, spread, %, samples, GB/s, roof, of roof, %, error, textbook, torch
    assert!(row("8x5x3x3_nhwc")[12].parse::<f64>().unwrap() > 1e6, "{table}");
    assert_eq!(row("8x5x3x3_nchw")[12], "-", "{table}");
    assert_eq!(json_lines(&fs::read(&json).unwrap()).len(), 4);
    let rows = fs::read_to_string(&csv).unwrap();
    assert!(rows.starts_with("case,shape,layout,type,threads,isa,peer,"), "{rows}");
    assert_eq!(rows.lines().filter(|row| row.starts_with("bn_relu_fwd,8x5x3x3_n")).count(), 4, "{rows}");
    assert!(fs::read(&plot).unwrap().starts_with(b"\x89PNG"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "a part of a file was left");
}

/// A `python3` that says what the script would, and nothing of PyTorch.
#[cfg(unix)]
fn stand_in(folder: &Path, says: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("python3");
    fs::write(&path, format!("#!/bin/sh\n{says}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(unix)]
#[test]
fn steps_are_timed_beside_pytorch_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let answers = "while read -r line; do case \"$line\" in *widths*) echo '{\"ready\": true}';; *) echo '{\"seconds\": 1000}';; esac; done";
    stand_in(folder.path(), &format!("echo '{{\"version\": \"0.1\"}}'\n{answers}"));
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let networks = ["--shape", "20-8-3", "--shape", "mlp20-8-3_nobn_b5_sgd"];
    let more = ["--isa", "scalar", "--isa", "portable", "--threads", "1,2", "--kernels", "--json", "-"];
    let output = evenkeel(&bench("step", &[&networks[..], &more].concat())).env("PATH", &path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = json_lines(&output.stdout);
    let peers = [
        None,
        Some("evenkeel-scalar"),
        Some("evenkeel-gathered"),
        Some("torch-0.1-eager"),
        Some("torch-0.1-eager_fusedopt"),
    ];
    assert_eq!(lines.len(), 2 * 2 * peers.len());
    let shapes = ["mlp20-8-3_bn_b32_adam", "mlp20-8-3_nobn_b5_sgd"];
    for (i, line) in lines.iter().enumerate() {
        let (case, peer) = (i / peers.len(), peers[i % peers.len()]);
        assert_eq!(
            (line["case"].as_str(), line["shape"].as_str()),
            (Some("train_step"), Some(shapes[case % 2])),
            "{line}"
        );
        assert_eq!((line["peer"].as_str(), line["threads"].as_u64()), (peer, Some(case as u64 / 2 + 1)), "{line}");
        for key in ["median_us", "steps_per_s", "samples_per_s", "gflops", "percent_of_peak"] {
            // A thousand seconds are less than four digits tell of a step a second.
            assert!(
                line[key].as_f64().unwrap() > 0.0 || peer.is_some_and(|peer| peer.starts_with("torch")),
                "{key} in {line}"
            );
        }
        if peer.is_none() {
            assert!(line["kernels"].as_array().unwrap().len() > 5 && line["allocations"].is_u64(), "{line}");
        }
    }
    // As a table, with a picture; a ratio for each way in which PyTorch trains.
    let plot = folder.path().join("steps.svg").display().to_string();
    let more = ["--shape", "20-8-3", "--isa", "portable", "--no-fusion", "--plot", &plot];
    let output = evenkeel(&bench("step", &more)).env("PATH", &path).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("without fusion") && table.contains("torch-0.1-eager_fusedopt: their time"), "{table}");
    assert!(fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    // Where there is none, or one that cannot be imported or ends, the table says so.
    for (says, why) in [
        ("echo '{\"missing\": \"ModuleNotFoundError: No module named torch\"}'", "ModuleNotFoundError"),
        ("exit 1", "has ended"),
        ("echo '{\"version\": \"0.1\"}'; read -r line", "has ended"),
        ("echo nonsense", "nonsense"),
    ] {
        stand_in(folder.path(), says);
        let output =
            evenkeel(&bench("step", &["--shape", "20-8-3", "--isa", "portable"])).env("PATH", &path).output().unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && table.contains("PyTorch is not beside it") && table.contains(why),
            "{table}"
        );
    }
    let output = evenkeel(&bench("step", &["--lab", "mlp32", "--isa", "portable"])).env("PATH", "").output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("mlp784-32-32-10_")).count();
    assert!(output.status.success() && rows == 2 && table.contains("python3 cannot be run"), "{table}");
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
    // No further than the variable allows.
    let capped = evenkeel(&bench("roof", &["--threads", "1", "--json", "-"])).env("EVENKEEL_ISA", "scalar").output();
    let lines = json_lines(&capped.unwrap().stdout);
    assert_eq!(lines.iter().filter(|line| line["case"] == "fma").count(), 2);
    assert!(lines.iter().all(|line| line["isa"].is_null() || line["isa"] == "scalar"));
}

#[test]
fn a_bench_refuses_what_it_cannot_do_before_it_measures() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let gemm = |more: &[&str], status: i32, words: &[&str]| refuses(&bench("gemm", more), status, words);
    gemm(&["--shape", "8x8"], 2, &["--shape", "8x8", "three sizes"]);
    gemm(&["--shape", "8x0x8"], 2, &["8x0x8", "nothing to multiply"]);
    gemm(&["--shape", "8x8x8_tt"], 2, &["8x8x8_tt", "_nt"]);
    gemm(&["--shape", "99999999999999999999x8x8"], 2, &["addressed"]);
    gemm(&["--shape", "10000000x10000000x1"], 2, &["10000000x10000000x1", "372529.1 GiB", "free"]);
    gemm(&["--shape", "18446744073709551615x18446744073709551615x2"], 2, &["GiB", "free"]);
    gemm(&["--threads", "0"], 2, &["threads", "1 to 1024"]);
    for wrong in ["two", "-1", "1.5", "", "1,,2", "99999999999999999999"] {
        gemm(&["--threads", wrong], 2, &["--threads", "expected a number of threads from 1 to 1024"]);
    }
    gemm(&["--isa", "avx1024"], 2, &["avx1024", "portable"]);
    for spelling in ["--dtype", "--type"] {
        gemm(&[spelling, "f16"], 2, &["--dtype", "f16", "f64"]);
    }
    gemm(&["--plot", &path("plot.pdf")], 2, &["plot.pdf", ".svg or .png"]);
    refuses(&bench("roof", &["--threads", "1,0"]), 2, &["threads", "1 to 1024"]);
    refuses(&["bench"], 2, &["Usage", "roof", "gemm", "batchnorm"]);
    let norm = |more: &[&str], status: i32, words: &[&str]| refuses(&bench("batchnorm", more), status, words);
    norm(&["--shape", "8"], 2, &["--shape", "NxC", "NxCxHxW"]);
    norm(&["--shape", "8x8x8x8x8"], 2, &["8x8x8x8x8", "NxCxHxW"]);
    norm(&["--shape", "8x0"], 2, &["8x0", "nothing to normalise"]);
    norm(&["--shape", "8x8x8x8_nwhc"], 2, &["_nwhc", "_nhwc"]);
    norm(&["--shape", "99999999999999999999x8"], 2, &["addressed"]);
    norm(&["--shape", "10000000x100000"], 2, &["10000000x100000_nc", "GiB", "free"]);
    norm(&["--shape", "18446744073709551615x18446744073709551615x2x2"], 2, &["GiB", "free"]);
    norm(&["--shape", "8x8", "--shape", "1x8"], 2, &["1x8_nc", "two values of each channel", "--pass forward"]);
    norm(&["--layout", "nwhc"], 2, &["nwhc", "nchw", "nhwc"]);
    norm(&["--pass", "sideways"], 2, &["sideways", "frozen-backward"]);
    norm(&["--dtype", "f16"], 2, &["f16", "f64"]);
    norm(&["--isa", "avx1024"], 2, &["avx1024", "portable"]);
    norm(&["--plot", &path("plot.pdf")], 2, &["plot.pdf", ".svg or .png"]);
    norm(&["--csv", "-"], 2, &["--csv", "--json -"]);
    norm(&["--csv", &path("one"), "--json", &path("one")], 2, &["--csv", "another file than --json's"]);
    norm(&["--csv", &path("./one"), "--json", &path("one")], 2, &["--csv", "another file than --json's"]);
    norm(&["--csv", &path("one.svg"), "--plot", &path("one.svg")], 2, &["--plot", "another file than --csv's"]);
    let info = run(&["info", "--format", "json"]);
    let available = serde_json::from_slice::<serde_json::Value>(&info.stdout).unwrap()["isa_available"].to_string();
    for isa in ["avx2", "avx512"].iter().filter(|isa| !available.contains(*isa)) {
        let known = if cfg!(target_arch = "x86_64") { "that this machine has" } else { "one of" };
        gemm(&["--isa", isa], 2, &[isa, known]);
    }

    gemm(&["--peers", &path("nowhere.jsonl")], 3, &["nowhere.jsonl"]);
    fs::write(path("peers.jsonl"), "{\"case\":\"gemm\",\"shape\":\"8x8x8\",\"median_us\":1}\n{\"case\":\"gemm\"}\n")
        .unwrap();
    gemm(&["--peers", &path("peers.jsonl")], 3, &["peers.jsonl: line 2", "shape"]);
    norm(&["--peers", &path("peers.jsonl")], 3, &["not one line is a normalisation", "bn_fwd"]);
    norm(&["--csv", &path("missing/table.csv")], 3, &["table.csv", "--csv"]);
    gemm(&["--json", &path("missing/lines.jsonl")], 3, &["lines.jsonl", "--json"]);
    gemm(&["--plot", &path("missing/plot.svg")], 3, &["plot.svg", "--plot"]);
    refuses(&bench("roof", &["--json", folder.path().to_str().unwrap()]), 3, &["it is a folder", "--json"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a refused run wrote a file");
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
