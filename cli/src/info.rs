//! `evenkeel info`: what this command and this computer are.

use crate::args::{Format, Info};
use crate::failure::Failure;
use crate::source::DATA_VARIABLE;
use crate::term::Out;
use evenkeel::machine;
use evenkeel::simd::{ISA_VARIABLE, Isa};
use serde_json::json;
use std::io::Write;

pub(crate) fn run(options: &Info) -> Result<(), Failure> {
    let available: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    let caches = machine::caches();
    let text = match options.format {
        Format::Json => {
            let caches: Vec<_> = caches.iter().map(|c| json!({ "level": c.level, "bytes": c.bytes })).collect();
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "processor": machine::processor(),
                "isa": Isa::current().name(),
                "isa_available": available,
                "caches": caches,
                "threads": machine::available_threads(),
            })
            .to_string()
        }
        Format::Human => {
            let variable = |name: &str| match std::env::var(name) {
                Ok(value) if !value.is_empty() => format!("{name}: {value}"),
                _ => format!("{name}: not set"),
            };
            let caches: Vec<String> = caches.iter().map(|c| format!("L{} {} KiB", c.level, c.bytes / 1024)).collect();
            let caches = if caches.is_empty() { "unknown".to_string() } else { caches.join(", ") };
            [
                format!("evenkeel         {}", env!("CARGO_PKG_VERSION")),
                format!("processor        {}", machine::processor().unwrap_or("unknown".to_string())),
                format!("instruction set  {} (of {})", Isa::current(), available.join(", ")),
                format!("capped by        {}", variable(ISA_VARIABLE)),
                format!("data caches      {caches}"),
                format!("threads          {}", machine::available_threads()),
                format!("data folder      {}", variable(DATA_VARIABLE)),
            ]
            .join("\n")
        }
    };
    writeln!(Out, "{text}").map_err(Failure::Output)
}
