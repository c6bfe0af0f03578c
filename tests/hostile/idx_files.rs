//! The bytes of small IDX files, for the tests of their reader.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;

/// An IDX file with these dimensions.
pub(crate) fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, u8::try_from(dims.len()).unwrap()];
    dims.iter().for_each(|dim| file.extend(dim.to_be_bytes()));
    file.extend(values);
    file
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Three images of 2x3 pixels.
pub(crate) fn small_images() -> Vec<u8> {
    idx(&[3, 2, 3], &(0..18).map(|i| i * 14).collect::<Vec<u8>>())
}

pub(crate) fn small_labels() -> Vec<u8> {
    idx(&[3], &[2, 0, 1])
}

/// What the files of MNIST are called.
pub(crate) const SPLIT: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];
