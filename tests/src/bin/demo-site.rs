//! A small site to look at through a tunnel: HTTP and HTTPS on loopback, see [`tests::origin`] for its targets.
//! `demo-site [--http ADDRESS:PORT] [--https ADDRESS:PORT] --ca FILE [NAME…]` writes its root to FILE, prints where it
//! listens, and stays until it is killed. NAMEs (default: localhost and 127.0.0.1) are those of its certificate.

use std::env;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;

use tests::origin::Origin;

fn main() -> ExitCode {
    match run() {
        Ok(_origin) => loop {
            thread::park();
        },
        Err(text) => {
            eprintln!("demo-site: {text}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<Origin, String> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let (mut http, mut https, mut ca, mut names) = (loopback, loopback, None, Vec::new());
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--http" => http = value()?.parse().map_err(|e| format!("--http: {e}"))?,
            "--https" => https = value()?.parse().map_err(|e| format!("--https: {e}"))?,
            "--ca" => ca = Some(value()?),
            _ if argument.starts_with('-') => return Err(format!("unknown option {argument}")),
            _ => names.push(argument),
        }
    }
    if names.is_empty() {
        names = vec!["localhost".into(), "127.0.0.1".into()];
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let origin = Origin::start_at(http, https, &names).map_err(|e| format!("cannot listen: {e}"))?;
    let ca = ca.ok_or("--ca FILE is needed")?;
    std::fs::write(&ca, &origin.site.root_pem).map_err(|e| format!("{ca}: {e}"))?;
    println!("HTTP: http://{}", origin.http);
    println!("HTTPS: https://localhost:{}", origin.https.port());
    Ok(origin)
}
