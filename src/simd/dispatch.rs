//! Which instruction set to use: found out once, capped by a variable, overridden by tests.

use super::{Element, Kernel, Lanes};
use crate::error::{Error, Result};
use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

/// The environment variable that caps the instruction set, as in `EVENKEEL_ISA=avx2`.
pub const ISA_VARIABLE: &str = "EVENKEEL_ISA";

/// The environment variable that makes a missing instruction set an error in the tests, as in `EVENKEEL_REQUIRE_ISA=avx2,avx512`.
pub const REQUIRE_VARIABLE: &str = "EVENKEEL_REQUIRE_ISA";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    Scalar,
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

const LEVELS: &[Level] = &[
    Level::Scalar,
    Level::Portable,
    #[cfg(target_arch = "x86_64")]
    Level::Avx2,
    #[cfg(target_arch = "x86_64")]
    Level::Avx512,
];

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }

    fn named(name: &str) -> Option<Level> {
        LEVELS.iter().copied().find(|level| level.name() == name)
    }

    /// Whether this machine can run it. On x86-64 this asks for every feature that the backend's file and the wrapper in
    /// `Isa::run` name.
    fn is_available(self) -> bool {
        match self {
            Level::Scalar | Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
        }
    }
}

/// An instruction set that this machine has: a value of this type is the proof, made only after detection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

thread_local! {
    static OVERRIDE: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// What the variable and the processor say, found out once.
fn detected() -> &'static (Isa, Option<String>) {
    static DETECTED: OnceLock<(Isa, Option<String>)> = OnceLock::new();
    DETECTED.get_or_init(|| {
        let best = |cap: Level| {
            let found = LEVELS.iter().rev().copied().find(|&level| level <= cap && level.is_available());
            Isa(found.unwrap_or(Level::Scalar))
        };
        let top = LEVELS[LEVELS.len() - 1];
        match std::env::var_os(ISA_VARIABLE).filter(|value| !value.is_empty()) {
            None => (best(top), None),
            Some(value) => match value.to_str().and_then(Level::named) {
                Some(cap) => (best(cap), None),
                None => (best(top), Some(value.to_string_lossy().into_owned())),
            },
        }
    })
}

impl Isa {
    /// The instruction set that kernels called from this thread use: the best one detected, capped by
    /// [`ISA_VARIABLE`], unless [`with_isa`] says otherwise.
    ///
    /// A value of the variable that names no instruction set is ignored here and reported by [`Isa::check_variable`].
    #[inline]
    pub fn current() -> Isa {
        OVERRIDE.with(Cell::get).unwrap_or_else(|| detected().0)
    }

    /// Says whether [`ISA_VARIABLE`] holds a name that means something.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the names that are known.
    pub fn check_variable() -> Result<()> {
        match &detected().1 {
            None => Ok(()),
            Some(value) => Err(unknown(ISA_VARIABLE, value)),
        }
    }

    /// Every instruction set that this machine can run, slowest first, the cap set aside.
    pub fn available() -> Vec<Isa> {
        LEVELS.iter().copied().filter(|level| level.is_available()).map(Isa).collect()
    }

    /// The instruction set of that name: `scalar`, `portable`, `avx2` or `avx512`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name is not known, or if this machine does not have it.
    pub fn named(name: &str) -> Result<Isa> {
        let level = Level::named(name).ok_or_else(|| unknown("instruction set", name))?;
        if level.is_available() {
            return Ok(Isa(level));
        }
        let have: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
        Err(Error::invalid("instruction set", name, format!("one that this machine has: {}", have.join(", "))))
    }

    /// `scalar`, `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Whether `mul_add` rounds once, so that results agree bit for bit with the other fused instruction sets.
    pub fn is_fused(self) -> bool {
        self.0 != Level::Portable
    }

    /// Whether arithmetic on a vector takes as long as on two of half as many lanes, and a division keeps one of the two units that
    /// multiply.
    #[inline]
    pub(crate) fn has_narrow_units(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => is_zen4(),
            _ => false,
        }
    }

    /// Runs a kernel with this instruction set's vectors.
    #[inline]
    pub(crate) fn run<T: Element, K: Kernel<T>>(self, kernel: K) -> K::Output {
        match self.0 {
            Level::Scalar => run_plain::<T, T::Scalar, K>(kernel),
            Level::Portable => run_plain::<T, T::Portable, K>(kernel),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Isa of this level is made only after these features were detected.
            Level::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Isa of this level is made only after these features were detected.
            Level::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

/// Whether this is a Zen 4, which passes vectors of 512 bits through units of 256 in two halves: a vendor, and a family, 0x19, in which
/// only it has AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline]
fn is_zen4() -> bool {
    use std::arch::x86_64::__cpuid;
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        #[allow(unused_unsafe, reason = "it is safe in later toolchains than the oldest that is supported")]
        // SAFETY: every x86-64 processor has the instruction and these two leaves.
        let (vendor, signature) = unsafe { (__cpuid(0), __cpuid(1).eax) };
        let vendor = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
        vendor.as_flattened() == b"AuthenticAMD" && family == 0x19
    })
}

fn unknown(what: &str, name: &str) -> Error {
    let names: Vec<&str> = LEVELS.iter().map(|level| level.name()).collect();
    Error::invalid(what, name, format!("one of {}", names.join(", ")))
}

/// Out of line, like its siblings: where a kernel is called, only the choice between them is compiled.
#[inline(never)]
fn run_plain<T: Element, V: Lanes<Elem = T>, K: Kernel<T>>(kernel: K) -> K::Output {
    kernel.run::<V>()
}

/// # Safety
/// The processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<T: Element, K: Kernel<T>>(kernel: K) -> K::Output {
    kernel.run::<T::Avx2>()
}

/// # Safety
/// The processor has AVX2, FMA and AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn run_avx512<T: Element, K: Kernel<T>>(kernel: K) -> K::Output {
    kernel.run::<T::Avx512>()
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs `f` with `isa` as this thread's instruction set; undone when `f` returns or panics.
///
/// For tests and benches. `isa` is a value of [`Isa`], so this machine has it. Other threads are not affected: inside
/// [`Threads::run`](crate::Threads::run) call it again, or enter by [`train::enter`](crate::train::enter), which carries it along.
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    struct Undo(Option<Isa>);
    impl Drop for Undo {
        fn drop(&mut self) {
            OVERRIDE.with(|o| o.set(self.0));
        }
    }
    let _undo = Undo(OVERRIDE.with(|o| o.replace(Some(isa))));
    f()
}
