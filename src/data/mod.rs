//! Data sets: where examples come from, and how batches are gathered from them.

pub mod digits;
#[cfg(feature = "data")]
pub mod idx;
mod loader;

pub use loader::{Batch, Batches, LastBatch, Loader, Order, Scale};

use crate::error::{Error, Result};

/// Grey images of one size with a class each, as they lie in memory: one byte per pixel.
///
/// Pixels stay bytes; a loader turns them into floats while it gathers a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    pixels: Vec<u8>,
    labels: Vec<u8>,
    height: usize,
    width: usize,
    classes: usize,
}

impl Images {
    /// Images from their parts.
    ///
    /// # Shapes
    /// `pixels`: `[n, height, width]`, `labels`: `[n]`, each label below `classes`.
    ///
    /// # Errors
    /// When an image has no pixels, when the lengths disagree, or when a label is not below `classes`.
    pub fn new(pixels: Vec<u8>, labels: Vec<u8>, height: usize, width: usize, classes: usize) -> Result<Self> {
        let expected = height.checked_mul(width).and_then(|pixels| pixels.checked_mul(labels.len()));
        if height == 0 || width == 0 {
            return Err(Error::shape("images", "at least one pixel", format!("{height}x{width}")));
        }
        if expected != Some(pixels.len()) {
            let wanted = format!("{} images of {height}x{width} pixels", labels.len());
            return Err(Error::shape("images: pixels", wanted, format!("{} bytes", pixels.len())));
        }
        if let Some(at) = labels.iter().position(|&label| usize::from(label) >= classes) {
            return Err(Error::invalid(format!("label of image {at}"), labels[at], format!("below {classes}")));
        }
        Ok(Images { pixels, labels, height, width, classes })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image at all.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Bytes of all images, `[n, height, width]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Class of each image.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Rows of an image.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns of an image.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }
}
