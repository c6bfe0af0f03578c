//! General matrix multiplication.

mod products;
