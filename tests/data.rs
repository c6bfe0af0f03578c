//! Readers of data files: what they accept, damaged files by chance, and real MNIST. What they refuse is in `hostile/`.

#![cfg(feature = "data")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

#[path = "hostile/idx_files.rs"]
mod idx_files;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use evenkeel::Error;
use evenkeel::data::Images;
use evenkeel::data::idx::{decode, parse_images, read_images, read_split};
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use idx_files::{SPLIT, gzip, idx, small_images, small_labels};
use proptest::prelude::*;
use tempfile::TempDir;

fn small() -> Images {
    Images::new((0..18).map(|i| i * 14).collect(), vec![2, 0, 1], 2, 3, 3).unwrap()
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
    let error = parse_images(&wrong_header_sum, &small_labels(), 3).unwrap_err().to_string();
    assert!(error.starts_with("images: at byte 0: expected intact gzip data") && error.contains("checksum"), "{error}");
}

#[test]
fn decode_reads_any_number_of_dimensions() {
    let file = idx(&[2, 1, 2, 1], &[1, 2, 3, 4]);
    let array = decode::<4>(&file, Path::new("x")).unwrap();
    assert_eq!((array.dims, array.values), ([2, 1, 2, 1], vec![1, 2, 3, 4]));
    assert!(decode::<3>(&file, Path::new("x")).is_err());
}

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
