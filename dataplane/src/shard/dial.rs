//! `sc`: dialling a link, and the handshake that both roles share.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;

use super::connection::Connection;
use super::link::Link;
use super::mailbox::{Event, Level};
use super::runtime::Socket;
use super::{Dialling, Role, Shard, timers};
use crate::error::Error;
use crate::limits::{LINK_NOTSENT_BYTES, RECORD_CIPHERTEXT_BYTES_MAX};
use crate::mux::Side;
use crate::tls::{Fingerprint, Handshake, KEY_REFUSED, Opener, Progress, Sealer, WRONG_KEY};

/// A connection after its handshake. `input` is what followed it.
pub(super) struct Secured {
    pub socket: Socket,
    pub sealer: Sealer,
    pub opener: Opener,
    pub peer: Fingerprint,
    pub input: BytesMut,
}

/// Dials a link once: connect and TLS within the time that the session allows; HELLO is the session's to wait for.
pub(super) async fn dial(shard: Shard, link: Rc<Link>) {
    let Role::Client(client) = &shard.0.role else { return };
    let (cloud, tls) = client.cloud.borrow().clone();
    let time = link.ask(&shard, |s, _, _| s.dial_time_max());
    let dialled = timers::timeout(time, connect(client, &link, cloud, tls.clone())).await;
    match dialled {
        Some(Ok(secured)) if !link.is_retired() => {
            let connection = Connection::new(secured.socket, secured.sealer);
            link.attach(&shard, connection, secured.opener, secured.input, |s, b, now| {
                s.connected(now, b)
            });
            return;
        }
        Some(Ok(_)) => {}
        Some(Err(e)) => {
            let wrong_key = matches!(&e, Error::Tls(text) if text == WRONG_KEY || text == KEY_REFUSED);
            failed(&shard, &link, e.to_string(), wrong_key);
        }
        None => failed(&shard, &link, format!("no connection within {time:?}"), false),
    }
    let elsewhere = !Arc::ptr_eq(&client.cloud.borrow().1, &tls);
    link.with(&shard, |s, _, now| {
        s.dial_failed(now);
        if elsewhere {
            s.dial_now(now);
        }
    });
}

/// `sc` tells why it has no connection; the endpoint only logs.
pub(super) fn failed(shard: &Shard, link: &Link, text: String, wrong_key: bool) {
    match shard.side() {
        Side::Client => shard.tell(Event::DialFailed {
            link: link.number,
            wrong_key,
            text,
        }),
        Side::Endpoint => shard.log(Level::Debug, format!("{link}: {text}")),
    }
}

async fn connect(
    client: &Dialling,
    link: &Link,
    cloud: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Secured, Error> {
    let socket = Socket::connect(cloud)
        .await
        .map_err(|e| Error::Io("connecting to the cloud", e))?;
    let handshake = Handshake::client(tls, &format!("{}.{}", link.number, client.server_name))?;
    shake_hands(socket, handshake, BytesMut::new()).await
}

/// Runs a handshake to its end. May be dropped, which closes the socket.
pub(super) async fn shake_hands(
    socket: Socket,
    mut handshake: Handshake,
    mut input: BytesMut,
) -> Result<Secured, Error> {
    limit_unsent(&socket)?;
    loop {
        let progress = handshake.handle(&mut input);
        while let Some(output) = handshake.output() {
            socket
                .write_all(&output)
                .await
                .map_err(|e| Error::Io("writing the handshake", e))?;
        }
        if progress? == Progress::Done {
            let (sealer, opener, peer) = handshake.into_records()?;
            return Ok(Secured {
                socket,
                sealer,
                opener,
                peer,
                input,
            });
        }
        if read_more(&socket, &mut input)
            .await
            .map_err(|e| Error::Io("reading the handshake", e))?
            == 0
        {
            return Err(Error::Closed("the connection, within the handshake,"));
        }
    }
}

/// Appends at most a record; 0 is the end. May be dropped.
pub(super) async fn read_more(socket: &Socket, input: &mut BytesMut) -> io::Result<usize> {
    input.reserve(RECORD_CIPHERTEXT_BYTES_MAX);
    loop {
        match socket.try_read(std::slice::from_mut(input), RECORD_CIPHERTEXT_BYTES_MAX) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
            read => return read,
        }
    }
}

fn limit_unsent(socket: &Socket) -> Result<(), Error> {
    let set = socket2::SockRef::from(socket).set_tcp_notsent_lowat(LINK_NOTSENT_BYTES);
    set.map_err(|e| Error::Io("TCP_NOTSENT_LOWAT", e))
}
