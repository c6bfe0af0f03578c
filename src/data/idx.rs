//! IDX, the format of MNIST: arrays of bytes with their dimensions in front, as they are or compressed with gzip.
//!
//! | offset | bytes | value |
//! |---|---|---|
//! | 0 | 2 | zero |
//! | 2 | 1 | type of an element; 8 is an unsigned byte, the only one read here |
//! | 3 | 1 | number of dimensions D |
//! | 4 | 4 D | the dimensions, big-endian, slowest first |
//! | 4 + 4 D | their product | the elements, row-major |
//!
//! So a file of images starts with the big-endian number 2051 and has dimensions `[n, height, width]`; a file of labels
//! starts with 2049 and has one dimension, `[n]`.
//!
//! A file is believed only as far as its bytes go. Dimensions that disagree with the length of the file are refused
//! before anything is allocated. The length of what is compressed cannot be known beforehand, so there memory grows
//! with the bytes that have really come out, and a claim beyond the ratio that DEFLATE can reach is refused at once.
//! Whether a file is compressed is told by its first two bytes, whatever it is called.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::Images;
use crate::error::{Error, Result};

/// The first two bytes of a gzip file (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The most that DEFLATE can shrink: a match of 258 bytes written with two bits (RFC 1951, section 3.2.5).
const MOST_PER_BYTE: u64 = 258 * 8 / 2;

/// Bytes asked for at first when the length of the data cannot be trusted.
const FIRST_PIECE: usize = 1 << 16;

/// Unsigned bytes with `D` dimensions, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array<const D: usize> {
    /// The dimensions, slowest first; none is zero.
    pub dims: [usize; D],
    /// The elements, as many as the product of the dimensions.
    pub values: Vec<u8>,
}

/// Reads images and their labels from a pair of IDX files, gzip or plain.
///
/// # Errors
/// When a file cannot be opened or read; when one is not IDX of bytes with three dimensions (images) or one (labels),
/// has a dimension of zero, is truncated, damaged or longer than its dimensions say; when the counts differ; when a
/// label is not below `classes`.
pub fn read_images(images: &Path, labels: &Path, classes: usize) -> Result<Images> {
    pair(images, read(images)?, labels, read(labels)?, classes)
}

/// As [`read_images`], from the contents of two files, which errors call `images` and `labels`.
///
/// # Errors
/// As [`read_images`], except that nothing is opened.
pub fn parse_images(images: &[u8], labels: &[u8], classes: usize) -> Result<Images> {
    let (images_name, labels_name) = (Path::new("images"), Path::new("labels"));
    let images = decode(images, images_name)?;
    let labels = decode(labels, labels_name)?;
    pair(images_name, images, labels_name, labels, classes)
}

/// Reads the four files of MNIST from a folder: images to train on, and the test set.
///
/// Each file may have either of the names in use, `train-images-idx3-ubyte` or `train-images.idx3-ubyte`, with or
/// without `.gz`; a name without comes first. Sets made to replace MNIST (Fashion-MNIST, KMNIST) have the same names.
///
/// # Errors
/// When the folder or a file is missing, with the names that were looked for; when the two sets differ in the size of
/// an image; and as [`read_images`], with ten classes.
pub fn read_split(folder: &Path) -> Result<(Images, Images)> {
    let open = |source| Error::io("open", folder, source);
    if !fs::metadata(folder).map_err(open)?.is_dir() {
        return Err(open(ErrorKind::NotADirectory.into()));
    }
    let mut missing = Vec::new();
    let mut found = Vec::new();
    for (stem, kind) in [("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1)] {
        let names = ["-", "."].map(|joint| format!("{stem}{joint}idx{kind}-ubyte"));
        match find(folder, &names)? {
            Some(path) => found.push(path),
            None => missing.push(names.join(" or ")),
        }
    }
    let [train_images, train_labels, test_images, test_labels] = found.as_slice() else {
        let text = format!("there is no {} (with or without .gz)", missing.join(", and no "));
        return Err(Error::io("find all of MNIST in", folder, io::Error::new(ErrorKind::NotFound, text)));
    };
    let train = read_images(train_images, train_labels, 10)?;
    let test = read_images(test_images, test_labels, 10)?;
    if (train.height, train.width) != (test.height, test.width) {
        return Err(Error::Format {
            path: test_images.clone(),
            offset: 8,
            expected: format!("images of {}x{} pixels, as in {}", train.height, train.width, train_images.display()),
            found: format!("{}x{}", test.height, test.width),
        });
    }
    Ok((train, test))
}

/// The first of `names`, each without and with `.gz`, that is in `folder`.
fn find(folder: &Path, names: &[String]) -> Result<Option<PathBuf>> {
    for name in names {
        for suffix in ["", ".gz"] {
            let path = folder.join(format!("{name}{suffix}"));
            // Not `exists`: a link that leads nowhere should be named when it is opened.
            match fs::symlink_metadata(&path) {
                Ok(_) => return Ok(Some(path)),
                Err(source) if source.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(Error::io("open", &path, source)),
            }
        }
    }
    Ok(None)
}

/// Images and labels, if they fit.
fn pair(images_path: &Path, images: Array<3>, path: &Path, labels: Array<1>, classes: usize) -> Result<Images> {
    let wrong = |offset: usize, expected, found| Error::Format {
        path: path.to_path_buf(),
        offset: offset as u64,
        expected,
        found,
    };
    let ([n, height, width], [count]) = (images.dims, labels.dims);
    if n != count {
        let expected = format!("{n} labels, one for each image of {}", images_path.display());
        return Err(wrong(4, expected, format!("{count} labels")));
    }
    if let Some(at) = labels.values.iter().position(|&label| usize::from(label) >= classes) {
        let found = format!("label {} of image {at}", labels.values[at]);
        return Err(wrong(8 + at, format!("a label below {classes}"), found));
    }
    Images::new(images.values, labels.values, height, width, classes)
}

/// Reads the array of one file.
fn read<const D: usize>(path: &Path) -> Result<Array<D>> {
    let open = |source| Error::io("open", path, source);
    // Looked at first: opening a pipe would wait for a writer, and a device has no length to check against.
    let metadata = fs::metadata(path).map_err(open)?;
    if metadata.is_dir() {
        return Err(open(ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() {
        return Err(open(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let file = File::open(path).map_err(open)?;
    let size = file.metadata().map_err(open)?.len();
    decode_from(BufReader::with_capacity(FIRST_PIECE, file), size, path)
}

/// Reads an array of `D` dimensions from the contents of a file, gzip or plain; `name` is only named in errors.
///
/// # Errors
/// As [`read_images`] has them for one file.
///
/// # Examples
/// ```
/// use evenkeel::data::idx;
/// let file = [0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9];
/// let array = idx::decode::<1>(&file, "labels".as_ref())?;
/// assert_eq!((array.dims, array.values), ([3], vec![7, 8, 9]));
/// # Ok::<(), evenkeel::Error>(())
/// ```
pub fn decode<const D: usize>(file: &[u8], name: &Path) -> Result<Array<D>> {
    decode_from(file, file.len() as u64, name)
}

/// [`decode`] of what `stored` gives, the bytes of a file of `size` bytes; its own failures are an [`Error::Io`].
fn decode_from<const D: usize>(stored: impl BufRead, size: u64, path: &Path) -> Result<Array<D>> {
    let mut stored = stored;
    let mut start = Vec::with_capacity(GZIP.len());
    stored.by_ref().take(GZIP.len() as u64).read_to_end(&mut start).map_err(|e| Error::io("read", path, e))?;
    let gzip = start == GZIP;
    let stored = start.chain(stored);
    if gzip {
        let most = Extent::AtMost { bytes: size.saturating_mul(MOST_PER_BYTE), size };
        Decoder { data: MultiGzDecoder::new(stored), extent: most, offset: 0, path }.array()
    } else {
        Decoder { data: stored, extent: Extent::Exactly(size), offset: 0, path }.array()
    }
}

/// What is known beforehand of the length of the data.
#[derive(Clone, Copy)]
enum Extent {
    /// A plain file has its own length.
    Exactly(u64),
    /// A compressed file of `size` bytes cannot hold more than `bytes`.
    AtMost { bytes: u64, size: u64 },
}

/// Reads IDX from data that are no longer compressed.
struct Decoder<'a, R> {
    data: R,
    extent: Extent,
    /// Bytes read so far, so where the next one is.
    offset: u64,
    path: &'a Path,
}

impl<R: Read> Decoder<'_, R> {
    /// The whole file.
    fn array<const D: usize>(mut self) -> Result<Array<D>> {
        let magic = u32::from_be_bytes(self.word()?);
        const { assert!(D < 256, "IDX has one byte for the number of dimensions") };
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let wanted = 0x800 + D as u32;
        if magic != wanted {
            return Err(self.wrong(0, describe_magic(wanted), describe_magic(magic)));
        }
        let mut dims = [0; D];
        let mut length = Some(1usize);
        for dim in &mut dims {
            let value = u32::from_be_bytes(self.word()?);
            if value == 0 {
                return Err(self.wrong(self.offset - 4, "a dimension of at least 1", "0"));
            }
            *dim = usize::try_from(value).unwrap_or(usize::MAX);
            length = length.and_then(|length| length.checked_mul(*dim));
        }
        let shape = dims.map(|dim| dim.to_string()).join("x");
        let length = length.filter(|&length| length < usize::MAX / 2);
        let length = length.ok_or_else(|| self.wrong(4, "dimensions of an array that fits in memory", &shape))?;
        self.check_extent(length as u64, &shape)?;
        let values = self.values(length, &shape)?;
        self.end()?;
        Ok(Array { dims, values })
    }

    /// Four bytes of the header.
    fn word(&mut self) -> Result<[u8; 4]> {
        let mut word = [0; 4];
        let mut filled = 0;
        while filled < word.len() {
            let read = self.read(&mut word[filled..])?;
            if read == 0 {
                return Err(self.wrong(self.offset, "an IDX header", "the end of the data"));
            }
            filled += read;
        }
        Ok(word)
    }

    /// Refuses, before memory is asked for, a length that the file cannot have.
    fn check_extent(&self, length: u64, shape: &str) -> Result<()> {
        let header = self.offset;
        match self.extent {
            Extent::Exactly(size) if size.saturating_sub(header) < length => {
                let expected = format!("{length} bytes after the header, for {shape} elements");
                let found = format!("the end of the file after {}", size.saturating_sub(header));
                Err(self.wrong(size, expected, found))
            }
            Extent::Exactly(size) if size - header > length => {
                let expected = format!("the end of the file after {shape} elements");
                Err(self.wrong(header + length, expected, format!("{} more bytes", size - header - length)))
            }
            Extent::AtMost { bytes, size } if length > bytes => {
                let expected = format!("at most {bytes} elements, all that {size} bytes of gzip can hold");
                Err(self.wrong(4, expected, format!("{shape}, which are {length}")))
            }
            _ => Ok(()),
        }
    }

    /// The elements. Room is made for at most twice of what has come, or for what the file's length has vouched for.
    fn values(&mut self, length: usize, shape: &str) -> Result<Vec<u8>> {
        let mut values = Vec::new();
        while values.len() < length {
            let left = length - values.len();
            let piece = match self.extent {
                Extent::Exactly(_) => left,
                Extent::AtMost { .. } => left.min(values.len().max(FIRST_PIECE)),
            };
            let out_of_memory = |_| Error::io("read", self.path, ErrorKind::OutOfMemory.into());
            values.try_reserve_exact(piece).map_err(out_of_memory)?;
            let before = values.len();
            let outcome = self.data.by_ref().take(piece as u64).read_to_end(&mut values);
            let read = values.len() - before;
            self.offset += read as u64;
            outcome.map_err(|source| self.failed(source))?;
            if read < piece {
                let expected = format!("{length} bytes after the header, for {shape} elements");
                return Err(self.wrong(self.offset, expected, format!("the end of the data after {}", values.len())));
            }
        }
        Ok(values)
    }

    /// Nothing may follow; of gzip this also checks the checksum, which comes after the last byte.
    fn end(&mut self) -> Result<()> {
        let at = self.offset;
        match self.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(self.wrong(at, "the end of the data", "more bytes")),
        }
    }

    /// Reads into `buffer`; 0 is the end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.data.read(buffer) {
                Ok(read) => {
                    self.offset += read as u64;
                    return Ok(read);
                }
                Err(source) if source.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
    }

    /// Whose fault an error is: the decompressor's complaints have no code of the operating system.
    fn failed(&self, source: io::Error) -> Error {
        let found = match source.kind() {
            _ if source.raw_os_error().is_some() => return Error::io("read", self.path, source),
            ErrorKind::UnexpectedEof => "the end of the compressed file".to_string(),
            ErrorKind::InvalidData | ErrorKind::InvalidInput => source.to_string(),
            _ => return Error::io("read", self.path, source),
        };
        self.wrong(self.offset, "intact gzip data to the end of the file", found)
    }

    fn wrong(&self, offset: u64, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Format { path: self.path.to_path_buf(), offset, expected: expected.into(), found: found.into() }
    }
}

/// A magic number in words, since images and labels are easily swapped.
fn describe_magic(magic: u32) -> String {
    let [zero, also_zero, kind, dims] = magic.to_be_bytes();
    let element = match kind {
        _ if (zero, also_zero) != (0, 0) => None,
        0x08 => Some("unsigned bytes"),
        0x09 => Some("signed bytes"),
        0x0b => Some("16-bit integers"),
        0x0c => Some("32-bit integers"),
        0x0d => Some("32-bit floats"),
        0x0e => Some("64-bit floats"),
        _ => None,
    };
    match element {
        Some(element) => {
            format!("magic number {magic} (IDX, {element}, {dims} dimension{})", if dims == 1 { "" } else { "s" })
        }
        None => format!("magic number {magic} (not IDX)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_magic_number_is_told_in_words() {
        assert_eq!(describe_magic(2051), "magic number 2051 (IDX, unsigned bytes, 3 dimensions)");
        assert_eq!(describe_magic(2049), "magic number 2049 (IDX, unsigned bytes, 1 dimension)");
        assert_eq!(describe_magic(0xd02), "magic number 3330 (IDX, 32-bit floats, 2 dimensions)");
        assert_eq!(describe_magic(0x89504e47), "magic number 2303741511 (not IDX)");
    }

    /// A source that fails after its first bytes.
    struct Failing(&'static [u8], fn() -> io::Error);

    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err((self.1)()) } else { self.0.read(buffer) }
        }
    }

    #[test]
    fn a_source_that_fails_is_not_a_bad_file() {
        for broken in [|| io::Error::from_raw_os_error(5), || io::Error::other("gone")] {
            for start in [&b"\0\0\x08\x01\0\0\0\x02a"[..], b"\x1f\x8b\x08\0\0\0\0\0\0\0", b"\0", b""] {
                let answer = decode_from::<1>(BufReader::new(Failing(start, broken)), 10, Path::new("x"));
                assert!(matches!(answer, Err(Error::Io { action: "read", .. })), "{answer:?} after {start:?}");
            }
        }
    }

    #[test]
    fn a_file_that_changes_its_length_meanwhile_is_refused() {
        let file = b"\0\0\x08\x01\0\0\0\x03abc";
        for (bytes, size) in [(&file[..10], 11), (&file[..], 10)] {
            assert!(matches!(decode_from::<1>(bytes, size, Path::new("x")), Err(Error::Format { offset: 10, .. })));
        }
    }

    #[test]
    fn a_source_may_be_interrupted_and_give_one_byte_at_a_time() {
        struct Slow(&'static [u8], bool);
        impl Read for Slow {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if self.1 { Err(ErrorKind::Interrupted.into()) } else { self.0.read(&mut buffer[..1]) }
            }
        }
        let file = b"\0\0\x08\x01\0\0\0\x03abc";
        let array = decode_from::<1>(BufReader::with_capacity(1, Slow(file, false)), 11, Path::new("x")).unwrap();
        assert_eq!(array, Array { dims: [3], values: b"abc".to_vec() });
    }
}
