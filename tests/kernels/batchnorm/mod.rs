//! Batch normalisation: statistics, both forward passes, both backward passes, fused with ReLU and not.

mod exactness;
mod extremes;
mod gradients;
mod layer;
mod layouts;
mod oracle;
mod statistics;
