//! Every operation of every backend against plain arithmetic, lane by lane.
#![expect(clippy::cast_possible_truncation, reason = "the same lines check f32 and f64")]

use super::*;

/// Checks the operations of one vector type on vectors cut from `values`.
struct Check<'a, T> {
    values: &'a [T],
    isa: Isa,
}

macro_rules! check {
    ($elem:ident) => {
        impl Kernel<$elem> for Check<'_, $elem> {
            type Output = ();
            #[inline(always)]
            fn run<V: Lanes<Elem = $elem>>(self) {
                let same = |a: $elem, b: $elem| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                let unary = |name: &str, f: &dyn Fn(V) -> V, plain: &dyn Fn($elem) -> $elem| {
                    for x in self.values.windows(V::WIDTH) {
                        let mut y = [0.0; 16];
                        f(V::load(x)).store(&mut y);
                        for i in 0..V::WIDTH {
                            assert!(same(y[i], plain(x[i])), "{} {name}({}) = {}", self.isa, x[i], y[i]);
                        }
                    }
                };
                let binary = |name: &str, f: &dyn Fn(V, V) -> V, plain: &dyn Fn($elem, $elem) -> $elem| {
                    for shift in 0..self.values.len() - V::WIDTH {
                        let (a, b) = (&self.values[..V::WIDTH], &self.values[shift..shift + V::WIDTH]);
                        let mut y = [0.0; 16];
                        f(V::load(a), V::load(b)).store(&mut y);
                        for i in 0..V::WIDTH {
                            assert!(same(y[i], plain(a[i], b[i])), "{} {name}({}, {})", self.isa, a[i], b[i]);
                        }
                    }
                };
                binary("add", &|a, b| a + b, &|a, b| a + b);
                binary("sub", &|a, b| a - b, &|a, b| a - b);
                binary("mul", &|a, b| a * b, &|a, b| a * b);
                binary("div", &|a, b| a / b, &|a, b| a / b);
                let yes_no = |a: V, b: V| V::select(a.le(b), V::splat(1.0), V::zero());
                binary("le", &yes_no, &|a, b| if a <= b { 1.0 } else { 0.0 });
                binary("max", &|a, b| a.max(b), &|a, b| if a <= b { b } else { a });
                binary("gated", &|a, b| a.gated(b), &|a, b| if b <= 0.0 { 0.0 } else { a });
                if self.isa.is_fused() {
                    binary("mul_add", &|a, b| a.mul_add(b, a), &|a, b| a.mul_add(b, a));
                }
                unary("sqrt", &|x| x.sqrt(), &|x| x.sqrt());
                let flush = |x: $elem| if x.abs() <= $elem::LARGEST_SUBNORMAL { 0.0 } else { x };
                unary("flush_subnormal", &|x| x.flush_subnormal(), &flush);

                // Roots together: in the range where a backend may find them otherwise, with zeros and subnormals; then with a lane
                // that is not in it.
                let top: $elem = 18_446_744_073_709_551_616.0;
                let (nan, inf, smallest) = ($elem::NAN, $elem::INFINITY, $elem::MIN_POSITIVE);
                let mixed = |i: u64| $elem::from_bits(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) as _);
                let below_top = |x: $elem| $elem::from_bits(x.to_bits() % top.to_bits());
                let mut inside: Vec<$elem> = (0..1 << 13).map(mixed).map(below_top).collect();
                inside.extend([0.0, -0.0, $elem::LARGEST_SUBNORMAL, 1e-45, smallest, top.next_down()].repeat(8));
                let together = |x: &[$elem]| {
                    // The largest scale in range for an offset of 1e-8 is between 1374 and 1375.
                    for scale in [1.0, 31.6, 1374.0, 1375.0, 0.5, top, 2.0 * top, inf, nan] {
                        for offset in [1e-8, 0.0, 1e-16, 1.0, -1.0, 1e30, inf, nan] {
                            let v: [V; 3] = std::array::from_fn(|i| V::load(&x[i * V::WIDTH..]));
                            let plain = v.map(|v| v.sqrt().mul_add(V::splat(scale), V::splat(offset)));
                            let found = V::roots_mul_add(v, scale, offset);
                            let [mut y, mut z] = [[0.0; 48]; 2];
                            for i in 0..3 {
                                found[i].store(&mut y[i * V::WIDTH..]);
                                plain[i].store(&mut z[i * V::WIDTH..]);
                            }
                            for (x, (y, z)) in x.iter().zip(y.into_iter().zip(z)) {
                                assert!(same(y, z), "{} sqrt({x}) * {scale} + {offset} = {y}", self.isa);
                            }
                        }
                    }
                };
                inside.chunks_exact(3 * V::WIDTH).for_each(together);
                for i in 0..3 * V::WIDTH {
                    for outside in [top, $elem::MAX, inf, nan, -1.0, -smallest, -inf] {
                        let mut x = [1.5; 48];
                        x[i] = outside;
                        together(&x[..3 * V::WIDTH]);
                    }
                }

                let row = |i: usize| 7 * i % (self.values.len() - V::WIDTH);
                let mut square = [V::zero(); 16];
                for i in 0..V::WIDTH {
                    square[i] = V::load(&self.values[row(i)..]);
                }
                V::transpose(&mut square);
                for i in 0..V::WIDTH {
                    let mut y = [0.0; 16];
                    square[i].store(&mut y);
                    for j in 0..V::WIDTH {
                        assert!(same(y[j], self.values[row(j) + i]), "{} transpose ({j}, {i})", self.isa);
                    }
                }

                // Partial loads and stores touch their slice and nothing else.
                for n in 0..=V::WIDTH {
                    let mut y = [7.0; 18];
                    V::load_partial(&self.values[..n]).store_partial(&mut y[1..=n]);
                    assert_eq!(y[0], 7.0, "{} store_partial({n})", self.isa);
                    for i in 0..n {
                        assert!(same(y[1 + i], self.values[i]), "{} load_partial({n})", self.isa);
                    }
                    assert!(y[1 + n..].iter().all(|&x| x == 7.0), "{} store_partial({n})", self.isa);
                    let mut full = [7.0; 16];
                    V::load_partial(&self.values[..n]).store(&mut full);
                    assert!(full[n..V::WIDTH].iter().all(|&x| x == 0.0), "{} load_partial({n})", self.isa);
                }
                let bytes: Vec<u8> = (0..=255).collect();
                for x in bytes.windows(V::WIDTH) {
                    let mut y = [0.0; 16];
                    V::from_bytes(x).store(&mut y);
                    for i in 0..V::WIDTH {
                        assert_eq!(y[i], $elem::from(x[i]), "{} from_bytes", self.isa);
                    }
                }
                for n in [$elem::LOWEST_EXPONENT as $elem, -3.0, -1.0, 0.0, 1.0, 20.0] {
                    let mut y = [0.0; 16];
                    V::splat(n).pow2().store(&mut y);
                    assert_eq!(y[0], $elem::powi(2.0, n as i32), "{} pow2({n})", self.isa);
                }
                // e^x for x from 0 down to where it vanishes: within 2u of the library's f64 (f32), 4u of it (f64).
                let lowest = $elem::LOWEST_EXPONENT as $elem * 0.69;
                for step in 0..=4000 {
                    let x = lowest * step as $elem / 4000.0;
                    let mut y = [0.0; 16];
                    V::splat(x).exp_nonpositive().store(&mut y);
                    let exact = f64::from(x).exp();
                    let limit = if $elem::NAME == "f32" { 2.0 } else { 4.0 };
                    let error = (f64::from(y[0]) - exact).abs() / exact;
                    // A portable product rounds twice: r carries one more rounding of a number up to 0.35.
                    let limit = if self.isa.is_fused() { limit } else { limit + 1.0 };
                    assert!(
                        error <= limit * $elem::ROUNDOFF || exact < 1e-37,
                        "{} exp({x}) off by {error:e}",
                        self.isa
                    );
                }
                let mut y = [0.0; 16];
                for (x, expected) in [(0.0, 1.0), ($elem::NEG_INFINITY, 0.0), (-1e4, 0.0), ($elem::NAN, $elem::NAN)] {
                    V::splat(x).exp_nonpositive().store(&mut y);
                    assert!(same(y[0], expected), "{} exp({x}) = {}", self.isa, y[0]);
                }
                // Sums over a group: the order is fixed, so a value that rounds shows a wrong one.
                let x: Vec<$elem> = (0..Group::<V>::LEN).map(|i| 1.0 / (3 + i) as $elem).collect();
                let mut tree = x.clone();
                while tree.len() > 1 {
                    let half = tree.len() / 2;
                    tree = (0..half).map(|i| tree[i] + tree[i + half]).collect();
                }
                let group = Group::<V>::splat(0.0).fold(&x, 0.0, |acc, x, _| acc + x);
                assert!(same(group.sum(), tree[0]), "{} group sum", self.isa);
                let largest = Group::<V>::splat($elem::NEG_INFINITY).fold(&x[..3], x[0], |acc, x, _| acc.max(x));
                assert!(same(largest.max(), x[0]), "{} group max", self.isa);
            }
        }
    };
}
check!(f32);
check!(f64);

#[test]
fn every_operation_agrees_with_plain_arithmetic() {
    let special = [0.0, -0.0, 1.0, -1.5, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1.1e-38, -1e-44, -2.2e-308, 1e30];
    let ordinary = |i: usize| 3.0 * (1.7 * i as f64).sin();
    let values: Vec<f64> =
        (0..64).map(|i| if i % 3 == 0 { special[i / 3 % special.len()] } else { ordinary(i) }).collect();
    let single: Vec<f32> = values.iter().map(|&x| f32::from_f64(x)).collect();
    for isa in Isa::available() {
        isa.run(Check { values: &values[..], isa });
        isa.run(Check { values: &single[..], isa });
    }
}

#[test]
fn an_override_is_undone_even_on_panic() {
    let before = Isa::current();
    let scalar = Isa::named("scalar").unwrap();
    let caught = std::panic::catch_unwind(|| with_isa(scalar, || panic!("{}", Isa::current())));
    assert!(caught.is_err());
    assert_eq!(Isa::current(), before);
    assert!(Isa::named("neon9").is_err());
}
