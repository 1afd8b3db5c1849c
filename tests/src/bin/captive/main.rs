//! `captive LAYER ATTEMPT FOLDER`: puts itself under one layer of the endpoint's sandbox, or all, by the endpoint's own
//! functions, and attempts one thing. Code 0: it worked. Code 1, and the errno printed: it was refused. Ended by SIGSYS:
//! it was an attack. Code 3: the kernel refuses the layer. LAYER `none` is the control.

mod calls;
mod life;
mod opcodes;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use controlplane::cloud::sandbox;

/// What is left to do once the layer is in force.
type Deed = Box<dyn FnOnce() -> io::Result<()>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [layer, attempt, folder] = &arguments[..] else {
        eprintln!("captive: LAYER ATTEMPT FOLDER");
        return ExitCode::from(2);
    };
    let deed = match prepare(layer, attempt, Path::new(folder)) {
        Ok(deed) => deed,
        Err(e) => {
            eprintln!("captive: {attempt}: {e}");
            return ExitCode::from(2);
        }
    };
    if let Err(e) = submit_to(layer) {
        eprintln!("captive: {layer}: {e}");
        return ExitCode::from(3);
    }
    match deed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("{}", e.raw_os_error().unwrap_or_default());
            ExitCode::from(1)
        }
    }
}

/// Everything that is needed is made first, outside.
fn prepare(layer: &str, attempt: &str, folder: &Path) -> io::Result<Deed> {
    match attempt.split_once('.') {
        Some(("call", name)) => calls::prepare(name, folder),
        Some(("opcode", name)) => opcodes::prepare(name, folder, layer == "ring"),
        Some(("life", name)) => life::prepare(name),
        _ => Err(io::Error::other("no such attempt")),
    }
}

fn submit_to(layer: &str) -> io::Result<()> {
    match layer {
        // The ring is restricted as it is made.
        "none" | "ring" => Ok(()),
        "network" => sandbox::network(),
        "capabilities" => sandbox::capabilities(),
        "landlock" => sandbox::landlock(),
        "calls" => sandbox::calls(),
        "without getrandom" => tests::seccomp::refuse(libc::SYS_getrandom),
        "all" => {
            let refused: Vec<String> = sandbox::enclose().into_iter().chain(sandbox::seal()).collect();
            match refused.is_empty() {
                true => Ok(()),
                false => Err(io::Error::other(refused.join("; "))),
            }
        }
        _ => Err(io::Error::other("no such layer")),
    }
}
