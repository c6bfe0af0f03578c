//! General matrix multiplication.

mod case;
mod products;
