//! TLS with a site, at `sc`.

use std::io;

use rustls_pki_types::{ServerName, UnixTime};

use super::dial::{Site, Unreached, micros};
use crate::bump::{self, Seen, Tls};
use crate::mux::Code;
use crate::shard::transport::tls_error;
use crate::shard::{Shard, runtime, timers};

/// Shakes hands and says what the site showed. From then on the connection's bytes are TLS's.
///
/// # Errors
/// `tls`: there is no TLS between this site and us; it may do with another client, a browser. Any other code is of what
/// passes.
pub(super) async fn shake(shard: &Shard, site: &mut Site, host: &str, port: u16) -> Result<Seen, Unreached> {
    let failed = |text: &str| (Code::Tls, format!("{host}:{port}: {text}"));
    let judge = shard.judge();
    let judge = judge.ok_or_else(|| failed("sites past the tunnel are not spoken TLS to"))?;
    let name = host.strip_suffix('.').unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(|_| failed("no name that TLS knows"))?;
    let config = bump::client_config(judge, host, port);
    let tls = Tls::client(config, name.clone()).map_err(|e| failed(&bump::failed(&e)))?;
    let begun = runtime::now();
    let time = shard.times().dial;
    match timers::timeout(time, site.socket.secure(tls)).await {
        None => {
            return Err((
                Code::ConnectTimeout,
                format!("{host}:{port}: the site did not shake hands in time"),
            ));
        }
        Some(Err(e)) => {
            let (code, text) = told(&e);
            return Err((code, format!("{host}:{port}: {text}")));
        }
        Some(Ok(())) => {}
    }
    let tls_us = micros(runtime::now().since(begun));
    let tls = site.socket.tls();
    let seen = tls.map(|tls| bump::see(judge, tls.borrow().facts(), &name, host, UnixTime::now()));
    let seen = seen.filter(|seen| !seen.verdict.is_opaque());
    let seen = seen.ok_or_else(|| failed("its certificate cannot be judged any more"))?;
    Ok(Seen { tls_us, ..seen })
}

fn told(error: &io::Error) -> (Code, String) {
    match tls_error(error) {
        Some(error) if bump::is_passing(error) => (Code::SiteReset, bump::failed(error)),
        Some(error) => (Code::Tls, bump::failed(error)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            (Code::SiteReset, "the site ended the handshake".to_owned())
        }
        None => (Code::SiteReset, format!("the site broke the handshake off: {error}")),
    }
}
