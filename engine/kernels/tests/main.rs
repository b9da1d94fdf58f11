//! What the kernels promise: the same bits on every tier, in any company, close to f64 and to the tensor framework.
//!
//! They are no unit tests, because those would compile all kernels, for all tiers, a second time.

mod attend;
mod buffer;
mod columns;
mod convolution;
mod delta;
mod format;
mod index;
mod lanes;
mod math;
mod matrix;
mod norm;
mod pack;
mod product;
mod quantize;
mod random;
mod real;
mod rope;
