//! General matrix multiplication: products, what they do besides, and packed operands.

mod case;
mod epilogues;
mod packed;
mod products;
