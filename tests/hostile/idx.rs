//! The reader of IDX files, from memory and from folders: what it refuses, and where it says the fault is.

use crate::idx_files::{SPLIT, gzip, idx, small_images as images, small_labels as labels};
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::data::idx::{decode, parse_images, read_images, read_split};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn at(offset: u64, words: &[&str]) -> Outcome {
    refused(Variant::Format(offset), words)
}

/// A file of images in memory, beside good labels.
fn of_images(kind: Kind, input: &str, outcome: Outcome, file: Vec<u8>) -> Row {
    row(kind, input, outcome, move || parse_images(&file, &labels(), 3).map(drop))
}

/// A file of labels in memory, beside good images.
fn of_labels(kind: Kind, input: &str, outcome: Outcome, file: Vec<u8>, classes: usize) -> Row {
    row(kind, input, outcome, move || parse_images(&images(), &file, classes).map(drop))
}

pub(crate) fn readers() -> Vec<Entry> {
    vec![
        entry("data::idx::parse_images: headers", headers()),
        entry("data::idx::parse_images: dimensions", dimensions()),
        entry("data::idx::parse_images: labels", labels_of_images()),
        entry("data::idx::parse_images: gzip", compressed()),
        entry("data::idx::read_images, read_split", files()),
    ]
}

fn headers() -> Vec<Row> {
    // IDX has a type for floats, in which such numbers could come.
    let floats = |kind, input: &str, x: f32| {
        let mut file = idx(&[1, 1, 1], &x.to_be_bytes());
        file[2] = 0x0d;
        of_images(kind, input, at(0, &["unsigned bytes, 3 dimensions", "found", "32-bit floats"]), file)
    };
    let mut rows = vec![
        of_images(
            Empty,
            "no bytes",
            at(0, &["images: at byte 0: expected an IDX header, found the end of the data"]),
            vec![],
        ),
        of_images(
            Mismatched,
            "another format",
            at(0, &["magic number 2051", "not IDX"]),
            b"\x89PNG\r\n\x1a\n".to_vec(),
        ),
        of_images(Mismatched, "labels for images", at(0, &["3 dimensions", "2049", "1 dimension)"]), labels()),
        of_labels(Mismatched, "images for labels", at(0, &["labels: at byte 0", "2049", "2051"]), images(), 3),
        floats(Nan, "an array of NaN", f32::NAN),
        floats(Infinite, "an array of infinity", f32::INFINITY),
        floats(Subnormal, "an array of a subnormal number", f32::from_bits(1)),
        row(
            Mismatched,
            "dimensions other than asked for",
            at(0, &["x: at byte 0", "3 dimensions", "4 dimensions"]),
            || decode::<3>(&idx(&[2, 1, 2, 1], &[1, 2, 3, 4]), Path::new("x")).map(drop),
        ),
        row(Misaligned, "a file that begins at any byte", gives("the same images"), || {
            for file in [images(), gzip(&images())] {
                for offset in 0..64 {
                    let moved = [vec![0xff; offset], file.clone()].concat();
                    let found = parse_images(&moved[offset..], &labels(), 3)?;
                    assert_eq!(found, parse_images(&images(), &labels(), 3)?, "offset {offset}");
                }
            }
            Ok(())
        }),
    ];
    for length in 1..16u64 {
        let cut = usize::try_from(length).unwrap();
        let outcome = at(length, &["an IDX header", "the end of the data"]);
        rows.push(of_images(Truncated, &format!("a header cut after {length}"), outcome, images()[..cut].to_vec()));
        let outcome = at(length, &["an IDX header", "the end of the data"]);
        rows.push(of_images(Truncated, &format!("and in gzip, after {length}"), outcome, gzip(&images()[..cut])));
    }
    rows
}

fn dimensions() -> Vec<Row> {
    // Pseudorandom bytes, which gzip cannot shrink.
    let mut state = 1u32;
    let noise: Vec<u8> = (0..4000)
        .flat_map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()
        })
        .collect();
    // 8 GB of pixels, and more than any machine can address; neither may be allocated.
    let (huge, endless) = (idx(&[2_000_000, 64, 64], &[1; 10]), idx(&[u32::MAX; 3], &[1; 10]));
    // Dimensions whose product is 2^64: none if it wraps.
    let (wraps_to_none, wraps_to_few) = (idx(&[1 << 31, 1 << 31, 4], &[]), idx(&[1 << 31, 1 << 31, 4], &[1; 18]));
    let fits = ["dimensions of an array that fits in memory"];
    let mut rows = vec![
        of_images(ZeroRows, "no images", at(4, &["a dimension of at least 1", "found 0"]), idx(&[0, 2, 3], &[])),
        of_images(Empty, "no rows of pixels", at(8, &["a dimension of at least 1", "found 0"]), idx(&[3, 0, 3], &[])),
        of_images(
            Empty,
            "no columns of pixels",
            at(12, &["a dimension of at least 1", "found 0"]),
            idx(&[3, 2, 0], &[]),
        ),
        of_images(
            ZeroRows,
            "no images of endless size",
            at(4, &["a dimension of at least 1"]),
            idx(&[0, u32::MAX, u32::MAX], &[]),
        ),
        of_images(Oversized, "8 GB claimed", at(26, &["8192000000 bytes", "after 10"]), huge.clone()),
        of_images(
            Oversized,
            "8 GB claimed in gzip",
            at(4, &["all that", "bytes of gzip can hold", "8192000000"]),
            gzip(&huge),
        ),
        of_images(Overflow, "2^96 claimed", at(4, &[fits[0], "4294967295x4294967295x4294967295"]), endless.clone()),
        of_images(Overflow, "2^96 claimed in gzip", at(4, &fits), gzip(&endless)),
        of_images(Overflow, "2^64, which wraps to none", at(4, &fits), wraps_to_none.clone()),
        of_images(Overflow, "2^64 in gzip", at(4, &fits), gzip(&wraps_to_none)),
        of_images(Overflow, "2^64, with some bytes", at(4, &fits), wraps_to_few),
        of_images(Overflow, "half of what an address has", at(4, &fits), idx(&[1 << 31, 1 << 31, 2], &[])),
        // A claim that the compressed length allows is met by what really comes out.
        of_images(
            Oversized,
            "a claim that the ratio allows",
            at(16_016, &["2400000 bytes", "after 16000"]),
            gzip(&idx(&[400_000, 2, 3], &noise)),
        ),
        row(OneRow, "one image of one pixel", gives("it"), || {
            let one = parse_images(&idx(&[1, 1, 1], &[7]), &idx(&[1], &[0]), 1)?;
            assert_eq!((one.len(), one.pixels()), (1, &[7][..]));
            Ok(())
        }),
    ];
    for (how, wrap) in [("plain", (|file| file) as fn(Vec<u8>) -> Vec<u8>), ("gzip", |file| gzip(&file))] {
        let mut long = images();
        long.extend(b"more");
        rows.extend([
            of_images(
                Truncated,
                &format!("{how}: a pixel short"),
                at(33, &["18 bytes after the header", "3x2x3", "after 17"]),
                wrap(images()[..33].to_vec()),
            ),
            of_images(
                Truncated,
                &format!("{how}: no pixels"),
                at(16, &["18 bytes after the header", "after 0"]),
                wrap(idx(&[3, 2, 3], &[])),
            ),
            of_images(
                Mismatched,
                &format!("{how}: bytes behind the pixels"),
                at(34, &["the end of the", "more bytes"]),
                wrap(long),
            ),
            of_labels(
                Truncated,
                &format!("{how}: a label short"),
                at(11, &["labels", "4 bytes", "after 3"]),
                wrap(idx(&[4], &[0; 3])),
                3,
            ),
        ]);
    }
    rows
}

fn labels_of_images() -> Vec<Row> {
    vec![
        of_labels(
            Truncated,
            "fewer labels than images",
            at(4, &["labels", "3 labels, one for each image of images", "found 2 labels"]),
            idx(&[2], &[0, 1]),
            3,
        ),
        of_labels(Mismatched, "more labels than images", at(4, &["found 4 labels"]), idx(&[4], &[0; 4]), 3),
        of_labels(ZeroRows, "no labels", at(4, &["a dimension of at least 1", "found 0"]), idx(&[0], &[]), 3),
        of_labels(Oversized, "a label too high", at(9, &["below 3", "label 3 of image 1"]), idx(&[3], &[2, 3, 1]), 3),
        of_labels(
            Oversized,
            "the largest label",
            at(10, &["below 255", "label 255 of image 2"]),
            idx(&[3], &[0, 0, 255]),
            255,
        ),
        of_labels(Senseless, "no classes", at(8, &["below 0"]), labels(), 0),
        of_labels(Oversized, "more classes than a byte has", gives("the labels"), idx(&[3], &[255; 3]), usize::MAX),
    ]
}

fn compressed() -> Vec<Row> {
    let good = gzip(&images());
    let changed = |place: usize, value: u8| {
        let mut file = good.clone();
        file[place] ^= value;
        file
    };
    let intact = "intact gzip data to the end of the file";
    let (checksum, length) = (good.len() - 8, good.len() - 4);
    let mut rows = vec![
        of_images(
            Truncated,
            "a byte short",
            at(34, &[intact, "the end of the compressed file"]),
            good[..good.len() - 1].to_vec(),
        ),
        of_images(Mismatched, "a wrong checksum", at(34, &[intact, "checksum"]), changed(checksum, 1)),
        of_images(Mismatched, "a wrong length", at(34, &[intact, "checksum"]), changed(length, 1)),
        of_images(Mismatched, "another method", at(0, &[intact, "header"]), changed(2, 15)),
        of_images(
            Mismatched,
            "a member more",
            at(34, &["the end of the data", "more bytes"]),
            [&good[..], &gzip(b"x")].concat(),
        ),
        of_images(Empty, "gzip of nothing", at(0, &["an IDX header", "the end of the data"]), gzip(&[])),
        of_images(Mismatched, "gzip in gzip", at(0, &["2051", "not IDX"]), gzip(&good)),
    ];
    for garbage in [&b"\0"[..], b"garbage after the member", &[0; 512]] {
        let file = [&good[..], garbage].concat();
        rows.push(of_images(
            Mismatched,
            &format!("{} bytes behind it", garbage.len()),
            at(34, &["to the end of the file"]),
            file,
        ));
    }
    rows.push(row(Truncated, "cut after any byte", gives("a format error, never images"), move || {
        for length in 0..good.len() {
            let answer = parse_images(&good[..length], &labels(), 3);
            assert!(matches!(answer, Err(evenkeel::Error::Format { .. })), "cut after {length}: {answer:?}");
        }
        Ok(())
    }));
    rows
}

/// A folder with two images to train on and one to test with, where `change` may spoil it.
fn folder(change: impl Fn(&dyn Fn(usize) -> PathBuf)) -> TempDir {
    let folder = TempDir::new().unwrap();
    let files = [idx(&[2, 2, 2], &[1; 8]), idx(&[2], &[9, 0]), idx(&[1, 2, 2], &[2; 4]), idx(&[1], &[0])];
    for (name, bytes) in SPLIT.iter().zip(files) {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    change(&|file| folder.path().join(SPLIT[file]));
    folder
}

fn files() -> Vec<Row> {
    let io = |words: &[&str]| refused(Variant::Io, words);
    let split = |kind, input: &str, outcome, change: fn(&dyn Fn(usize) -> PathBuf)| {
        row(kind, input, outcome, move || read_split(folder(change).path()).map(drop))
    };
    // Images, then labels, that are spoilt beside good ones.
    let pair = |kind, input: &'static str, outcome: fn() -> Outcome, spoil: fn(&Path) -> PathBuf| {
        [0, 1].map(|which| {
            row(kind, format!("{input} for {}", ["images", "labels"][which]), outcome(), move || {
                let folder = folder(|_| {});
                let mut paths = [0, 1].map(|file| folder.path().join(SPLIT[file]));
                paths[which] = spoil(&paths[which]);
                read_images(&paths[0], &paths[1], 10).map(drop)
            })
        })
    };
    let mut rows = vec![
        split(
            Truncated,
            "a file of no bytes",
            at(0, &["t10k-labels-idx1-ubyte: at byte 0", "an IDX header"]),
            |file| {
                fs::write(file(3), b"").unwrap();
            },
        ),
        split(
            Mismatched,
            "sets with images of two sizes",
            at(8, &["t10k-images", "images of 2x2 pixels, as in", "train-images", "found 2x3"]),
            |file| {
                fs::write(file(2), idx(&[1, 2, 3], &[2; 6])).unwrap();
            },
        ),
        split(
            Oversized,
            "a label that is no digit",
            at(9, &["train-labels", "a label below 10", "label 10 of image 1"]),
            |file| {
                fs::write(file(1), idx(&[2], &[9, 10])).unwrap();
            },
        ),
        split(
            Truncated,
            "two files of four",
            io(&[
                "find all of MNIST in",
                "train-labels-idx1-ubyte or train-labels.idx1-ubyte",
                "t10k-images-idx3-ubyte or t10k-images.idx3-ubyte",
                "with or without .gz",
            ]),
            |file| {
                fs::remove_file(file(1)).unwrap();
                fs::remove_file(file(2)).unwrap();
            },
        ),
        split(
            Mismatched,
            "a plain file where the other is compressed",
            gives("the plain one, which comes first"),
            |file| {
                fs::write(file(0).with_file_name("train-images-idx3-ubyte.gz"), b"never looked at").unwrap();
            },
        ),
        split(OneRow, "sets of one and two", gives("both"), |_| {}),
        row(Empty, "a folder without files", io(&["find all of MNIST in", "train-images", "t10k-labels"]), || {
            read_split(TempDir::new().unwrap().path()).map(drop)
        }),
        row(Empty, "no folder", io(&["cannot open", "absent"]), || {
            read_split(&TempDir::new().unwrap().path().join("absent")).map(drop)
        }),
        row(Mismatched, "a file for a folder", io(&["cannot open", SPLIT[0], "not a directory"]), || {
            read_split(&folder(|_| {}).path().join(SPLIT[0])).map(drop)
        }),
    ];
    rows.extend(pair(
        Empty,
        "no file",
        || refused(Variant::Io, &["cannot open", "absent"]),
        |path| path.with_file_name("absent"),
    ));
    rows.extend(pair(
        Mismatched,
        "a folder",
        || refused(Variant::Io, &["cannot open", "directory"]),
        |path| path.parent().unwrap().to_path_buf(),
    ));
    rows.extend(pair(
        Truncated,
        "four bytes of another format",
        || at(0, &["ubyte: at byte 0", "not IDX"]),
        |path| {
            fs::write(path, b"bad!").unwrap();
            path.to_path_buf()
        },
    ));
    #[cfg(unix)]
    {
        rows.extend(pair(
            Oversized,
            "a device without end",
            || refused(Variant::Io, &["cannot open /dev/zero", "not a regular file"]),
            |_| PathBuf::from("/dev/zero"),
        ));
        // A link that leads nowhere is named when it is opened, not taken for a missing file.
        rows.push(split(Mismatched, "a link that leads nowhere", io(&["cannot open", SPLIT[1]]), |file| {
            fs::remove_file(file(1)).unwrap();
            std::os::unix::fs::symlink("nowhere", file(1)).unwrap();
        }));
    }
    rows
}
