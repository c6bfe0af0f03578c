//! General matrix multiplication: products, and what they do besides.

mod case;
mod epilogues;
mod products;
