//! Readers of data files: what they accept, what they refuse and where they say the fault is, and real MNIST.

#![cfg(feature = "data")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use evenkeel::Error;
use evenkeel::data::Images;
use evenkeel::data::idx::{decode, parse_images, read_images, read_split};
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use proptest::prelude::*;
use tempfile::TempDir;

/// The bytes of an IDX file with these dimensions.
fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, u8::try_from(dims.len()).unwrap()];
    dims.iter().for_each(|dim| file.extend(dim.to_be_bytes()));
    file.extend(values);
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Three images of 2x3 pixels.
fn small_images() -> Vec<u8> {
    idx(&[3, 2, 3], &(0..18).map(|i| i * 14).collect::<Vec<u8>>())
}

fn small_labels() -> Vec<u8> {
    idx(&[3], &[2, 0, 1])
}

fn small() -> Images {
    Images::new((0..18).map(|i| i * 14).collect(), vec![2, 0, 1], 2, 3, 3).unwrap()
}

/// Asserts that an answer is a format error at this offset, and that its text has all of `words`.
#[track_caller]
fn refused<A: std::fmt::Debug>(answer: Result<A, Error>, at: u64, words: &[&str]) {
    let error = answer.expect_err("this should have been refused");
    let text = error.to_string();
    assert!(matches!(&error, Error::Format { offset, .. } if *offset == at), "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

/// As [`refused`], of images in memory that have good labels.
#[track_caller]
fn images_refused(images: &[u8], at: u64, words: &[&str]) {
    refused(parse_images(images, &small_labels(), 3), at, words);
}

#[test]
fn good_files_are_read_plain_and_compressed_whatever_their_name() {
    let folder = TempDir::new().unwrap();
    let [images, labels] = ["images.gz", "labels"].map(|name| folder.path().join(name));
    for (write_images, write_labels) in [
        (small_images(), small_labels()),
        (gzip(&small_images()), gzip(&small_labels())),
        (small_images(), gzip(&small_labels())),
    ] {
        fs::write(&images, &write_images).unwrap();
        fs::write(&labels, &write_labels).unwrap();
        assert_eq!(read_images(&images, &labels, 3).unwrap(), small());
        assert_eq!(parse_images(&write_images, &write_labels, 3).unwrap(), small());
    }
}

#[test]
fn headers_that_are_not_ours_are_refused() {
    images_refused(b"", 0, &["images", "IDX header", "the end of the data"]);
    images_refused(b"\0\0\x08", 3, &["IDX header", "the end of the data"]);
    images_refused(&small_images()[..13], 13, &["IDX header", "the end of the data"]);
    images_refused(b"\x89PNG\r\n\x1a\n", 0, &["2051", "not IDX"]);
    images_refused(&small_labels(), 0, &["3 dimensions", "2049", "1 dimension)"]);
    refused(parse_images(&small_images(), &small_images(), 3), 0, &["labels", "2049", "2051"]);
    let mut floats = small_images();
    floats[2] = 0x0d;
    images_refused(&floats, 0, &["unsigned bytes", "32-bit floats"]);
    images_refused(&gzip(b"\0\0\x08"), 3, &["IDX header", "the end of the data"]);
}

#[test]
fn dimensions_must_agree_with_the_bytes() {
    images_refused(&idx(&[0, 2, 3], &[]), 4, &["at least 1", "found 0"]);
    images_refused(&idx(&[3, 2, 0], &[]), 12, &["at least 1", "found 0"]);
    for wrap in [|file: Vec<u8>| file, |file: Vec<u8>| gzip(&file)] {
        let short = small_images()[..33].to_vec();
        images_refused(&wrap(short), 33, &["18 bytes after the header", "3x2x3", "after 17"]);
        images_refused(&wrap(idx(&[3, 2, 3], &[])), 16, &["18 bytes after the header", "after 0"]);
        let mut long = small_images();
        long.extend(b"more");
        images_refused(&wrap(long), 34, &["the end of the", "more bytes"]);
        refused(parse_images(&small_images(), &wrap(idx(&[4], &[0; 3])), 3), 11, &["labels", "4 bytes", "after 3"]);
    }
}

#[test]
fn a_claim_is_not_believed_before_the_bytes_are_there() {
    // 8 GB of pixels, and more than any machine can address; neither may be allocated.
    let huge = idx(&[2_000_000, 64, 64], &[1; 10]);
    images_refused(&huge, 26, &["8192000000 bytes", "after 10"]);
    images_refused(&gzip(&huge), 4, &["all that", "bytes of gzip can hold", "8192000000"]);
    let endless = idx(&[u32::MAX; 3], &[1; 10]);
    images_refused(&endless, 4, &["fits in memory", "4294967295x4294967295x4294967295"]);
    images_refused(&gzip(&endless), 4, &["fits in memory"]);
    // A claim that the compressed length allows is met by what really comes out.
    let mut noise = idx(&[400_000, 2, 3], &[]);
    let mut state = 1u32;
    for _ in 0..4000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.extend(state.to_be_bytes());
    }
    images_refused(&gzip(&noise), 16_016, &["2400000 bytes", "after 16000"]);
}

#[test]
fn labels_must_fit_the_images_and_the_classes() {
    let two = idx(&[2], &[0, 1]);
    refused(parse_images(&small_images(), &two, 3), 4, &["labels", "3 labels", "images", "found 2 labels"]);
    let high = idx(&[3], &[2, 3, 1]);
    refused(parse_images(&small_images(), &high, 3), 9, &["below 3", "label 3 of image 1"]);
    refused(parse_images(&small_images(), &small_labels(), 0), 8, &["below 0"]);
    assert_eq!(parse_images(&small_images(), &idx(&[3], &[255; 3]), 256).unwrap().labels(), [255; 3]);
}

/// A gzip file with every optional field of the header: FTEXT, FHCRC, FEXTRA, FNAME and FCOMMENT.
fn gzip_with_all_fields(bytes: &[u8]) -> Vec<u8> {
    let builder = GzBuilder::new().filename("name").comment("a comment").extra(&b"ab\x03\0xyz"[..]).mtime(7);
    let mut encoder = builder.write(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    let plain = encoder.finish().unwrap();
    let header = 10 + 2 + 7 + 5 + 10;
    let mut file = plain[..header].to_vec();
    file[3] |= 0b11;
    // FHCRC is the low half of the CRC-32 of all of the header before it.
    let mut crc = flate2::Crc::new();
    crc.update(&file);
    file.extend(&crc.sum().to_le_bytes()[..2]);
    file.extend(&plain[header..]);
    file
}

#[test]
fn optional_gzip_fields_and_several_members_are_read() {
    let full = gzip_with_all_fields(&small_images());
    assert_eq!(parse_images(&full, &small_labels(), 3).unwrap(), small());
    let (first, second) = (&small_images()[..20], &small_images()[20..]);
    let members = [gzip(first), gzip_with_all_fields(second)].concat();
    assert_eq!(parse_images(&members, &small_labels(), 3).unwrap(), small());
    let mut wrong_header_sum = full;
    wrong_header_sum[12] ^= 1;
    images_refused(&wrong_header_sum, 0, &["intact gzip data", "checksum"]);
}

#[test]
fn damaged_gzip_is_refused_at_the_offset_of_the_data() {
    let good = gzip(&small_images());
    for length in 2..good.len() {
        let answer = parse_images(&good[..length], &small_labels(), 3);
        assert!(matches!(answer, Err(Error::Format { .. })), "cut after {length}: {answer:?}");
    }
    images_refused(&good[..good.len() - 1], 34, &["intact gzip data", "the end of the compressed file"]);
    for trailer in [8, 4] {
        // The checksum, then the length.
        let mut wrong = good.clone();
        let at = wrong.len() - trailer;
        wrong[at] ^= 1;
        images_refused(&wrong, 34, &["intact gzip data", "checksum"]);
    }
    for garbage in [&b"\0"[..], b"garbage after the member", &[0; 512]] {
        images_refused(&[&good, garbage].concat(), 34, &["to the end of the file"]);
    }
    images_refused(&[&good[..], &gzip(b"x")].concat(), 34, &["the end of the data", "more bytes"]);
    let mut method = good;
    method[2] = 7;
    images_refused(&method, 0, &["intact gzip data", "header"]);
}

#[test]
fn decode_reads_any_number_of_dimensions() {
    let file = idx(&[2, 1, 2, 1], &[1, 2, 3, 4]);
    let array = decode::<4>(&file, Path::new("x")).unwrap();
    assert_eq!((array.dims, array.values), ([2, 1, 2, 1], vec![1, 2, 3, 4]));
    assert!(decode::<3>(&file, Path::new("x")).is_err());
}

#[test]
fn files_that_cannot_be_opened_are_named() {
    let folder = TempDir::new().unwrap();
    let good = folder.path().join("good");
    fs::write(&good, small_images()).unwrap();
    for (path, word) in [(folder.path().join("absent"), "absent"), (folder.path().to_path_buf(), "directory")] {
        let error = read_images(&path, &good, 3).unwrap_err();
        assert!(matches!(&error, Error::Io { action: "open", path: named, .. } if *named == path), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        let error = read_images(&good, &path, 3).unwrap_err();
        assert!(matches!(&error, Error::Io { action: "open", path: named, .. } if *named == path), "{error}");
    }
    #[cfg(unix)]
    {
        let error = read_images(Path::new("/dev/zero"), &good, 3).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
    fs::write(folder.path().join("bad"), b"bad!").unwrap();
    refused(read_images(&folder.path().join("bad"), &good, 3), 0, &["bad: at byte 0", "2051"]);
}

const SPLIT: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

/// A folder with the four files, one image to train on and two to test with, under the names that `name` makes.
fn split_folder(name: impl Fn(&str) -> String) -> TempDir {
    let folder = TempDir::new().unwrap();
    let files = [idx(&[1, 2, 2], &[1; 4]), idx(&[1], &[9]), idx(&[2, 2, 2], &[2; 8]), idx(&[2], &[0, 1])];
    for (standard, bytes) in SPLIT.iter().zip(files) {
        let name = name(standard);
        let bytes = if name.ends_with(".gz") { gzip(&bytes) } else { bytes };
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn a_split_is_found_under_each_of_its_names() {
    let names: [fn(&str) -> String; 4] = [
        |name| name.to_string(),
        |name| format!("{name}.gz"),
        |name| name.replace("-idx", ".idx"),
        |name| format!("{}.gz", name.replace("-idx", ".idx")),
    ];
    for name in names {
        let folder = split_folder(name);
        let (train, test) = read_split(folder.path()).unwrap();
        assert_eq!((train.len(), train.labels(), train.classes()), (1, &[9][..], 10));
        assert_eq!((test.len(), test.labels(), test.pixels()), (2, &[0, 1][..], &[2; 8][..]));
    }
}

#[test]
fn a_plain_file_comes_before_a_compressed_one() {
    let folder = split_folder(str::to_string);
    fs::write(folder.path().join("train-images-idx3-ubyte.gz"), b"never looked at").unwrap();
    assert_eq!(read_split(folder.path()).unwrap().0.len(), 1);
}

#[test]
fn an_incomplete_split_tells_what_was_looked_for_and_where() {
    let folder = split_folder(str::to_string);
    fs::remove_file(folder.path().join(SPLIT[1])).unwrap();
    fs::remove_file(folder.path().join(SPLIT[2])).unwrap();
    let text = read_split(folder.path()).unwrap_err().to_string();
    for word in [
        folder.path().to_str().unwrap(),
        "train-labels-idx1-ubyte or train-labels.idx1-ubyte",
        "t10k-images-idx3-ubyte or t10k-images.idx3-ubyte",
        "with or without .gz",
    ] {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
    assert!(!text.contains("train-images"), "{text}");

    let absent = folder.path().join("absent");
    let text = read_split(&absent).unwrap_err().to_string();
    assert!(text.starts_with(&format!("cannot open {}", absent.display())), "{text}");
    let text = read_split(&folder.path().join(SPLIT[0])).unwrap_err().to_string();
    assert!(text.contains(SPLIT[0]) && text.contains("not a directory"), "{text}");
}

#[test]
fn both_sets_of_a_split_have_images_of_one_size() {
    let folder = split_folder(str::to_string);
    fs::write(folder.path().join(SPLIT[2]), idx(&[2, 2, 3], &[2; 12])).unwrap();
    refused(read_split(folder.path()), 8, &["t10k-images", "2x2", "train-images", "2x3"]);
}

proptest! {
    #[test]
    fn what_was_written_is_read_back(
        (n, height, width) in (1usize..20, 1usize..12, 1usize..12),
        seed in any::<u64>(),
        level in 0u32..10,
    ) {
        let mut rng = evenkeel::Rng::new(seed, "test images");
        let mut bytes = |count: usize, below: u64| -> Vec<u8> {
            (0..count).map(|_| u8::try_from(rng.below(below)).unwrap()).collect()
        };
        let (pixels, labels) = (bytes(n * height * width, 256), bytes(n, 10));
        let dims = [n, height, width].map(|dim| u32::try_from(dim).unwrap());
        let (image_file, label_file) = (idx(&dims, &pixels), idx(&dims[..1], &labels));
        let written = Images::new(pixels, labels, height, width, 10).unwrap();
        prop_assert_eq!(&parse_images(&image_file, &label_file, 10).unwrap(), &written);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(&image_file).unwrap();
        let compressed = encoder.finish().unwrap();
        prop_assert_eq!(&parse_images(&compressed, &label_file, 10).unwrap(), &written);
    }

    #[test]
    fn a_changed_or_cut_file_is_read_or_refused_without_panic(
        compressed in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let mut file = if compressed { gzip_with_all_fields(&small_images()) } else { small_images() };
        let good = file.clone();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        file.extend(tail);
        match parse_images(&file, &small_labels(), 3) {
            Ok(images) => {
                prop_assert_eq!(images.pixels().len(), images.len() * images.height() * images.width());
                prop_assert!(!compressed || images == small(), "a changed gzip file was read as something else");
            }
            Err(error) => {
                prop_assert!(matches!(error, Error::Format { .. }), "{}", error);
                prop_assert!(file != good, "the good file was refused: {}", error);
            }
        }
    }
}

/// The folder of real data files, or nothing and a word about it.
fn data_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("EVENKEEL_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: EVENKEEL_DATA is not set");
    }
    folder
}

#[test]
fn real_mnist_has_its_known_counts_and_mean() {
    let Some(folder) = data_folder() else { return };
    let (train, test) = read_split(&folder.join("mnist")).unwrap();
    let known = [
        (&train, 60_000, 0.1307, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        (&test, 10_000, 0.1325, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ];
    for (images, n, mean, counts) in known {
        assert_eq!((images.len(), images.height(), images.width(), images.classes()), (n, 28, 28, 10));
        let mut found = [0; 10];
        images.labels().iter().for_each(|&label| found[usize::from(label)] += 1);
        assert_eq!(found, counts);
        let sum: u64 = images.pixels().iter().map(|&pixel| u64::from(pixel)).sum();
        let found = sum as f64 / (255.0 * images.pixels().len() as f64);
        assert!((found - mean).abs() < 0.00005, "mean {found}, known to be {mean}");
    }
    assert_eq!(train.labels()[..10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
}
