//! The IDX reader never panics, never asks for memory that its input cannot justify, and reads gzip as it reads plain.
//!
//! Run with `cargo +nightly fuzz run idx -- -max_len=4096 -malloc_limit_mb=64`: 4096 bytes of gzip can hold 4 MiB at
//! most, so the limit on a single allocation checks the second claim.

#![no_main]

use std::io::Write;
use std::path::Path;

use arbitrary::Arbitrary;
use evenkeel::Error;
use evenkeel::data::idx::{Array, decode, parse_images};
use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// A file of unknown content.
    Raw(&'a [u8]),
    /// A pair of such files.
    Pair(&'a [u8], &'a [u8], u8),
    /// A good header with dimensions that may be lies.
    Header([u8; 3], bool, &'a [u8]),
    /// Good gzip of anything.
    Compressed(&'a [u8]),
}

fn read<const D: usize>(file: &[u8]) -> Result<Array<D>, Error> {
    let answer = decode::<D>(file, Path::new("fuzz"));
    match &answer {
        Ok(array) => assert_eq!(array.values.len(), array.dims.iter().product::<usize>()),
        Err(error) => assert!(matches!(error, Error::Format { .. }), "{error}"),
    }
    answer
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("a vector takes all");
    encoder.finish().expect("a vector takes all")
}

fuzz_target!(|input: Input| match input {
    Input::Raw(file) => {
        let _ = read::<1>(file);
        let _ = read::<3>(file);
    }
    Input::Pair(images, labels, classes) => {
        if let Ok(images) = parse_images(images, labels, usize::from(classes)) {
            assert!(images.labels().iter().all(|&label| label < classes));
        }
    }
    Input::Header(dims, large, values) => {
        let mut file = vec![0, 0, 8, 3];
        for dim in dims {
            file.extend((u32::from(dim) << if large { 24 } else { 0 }).to_be_bytes());
        }
        file.extend(values);
        let (plain, packed) = (read::<3>(&file), read::<3>(&gzip(&file)));
        assert_eq!(plain.ok(), packed.ok());
    }
    Input::Compressed(bytes) => {
        assert_eq!(read::<3>(&gzip(bytes)).ok(), read::<3>(bytes).ok().filter(|_| !bytes.starts_with(&[0x1f, 0x8b])));
    }
});
