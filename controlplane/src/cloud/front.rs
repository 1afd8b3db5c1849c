//! The one public port: reads each ClientHello and sends the connection where its server name belongs.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use dataplane::limits::{CLIENT_HELLO_BYTES_MAX, CLIENT_HELLO_MAX, CLIENT_HELLOS_PENDING_MAX};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::Cloud;
use super::bucket::Bucket;
use super::hello::{HelloReader, Malformed, Place, place};
use super::limits::{
    ACCEPT_PAUSE, ACCEPTS_BURST, ACCEPTS_OF_ONE_BURST, ACCEPTS_OF_ONE_PER_SECOND, ACCEPTS_PER_SECOND, ACCEPTS_PER_TURN,
    ADDRESSES_MAX, ALERT_MAX, LINKS_MAX, PENDING_OF_ONE_MAX, REST_CONNECTIONS_MAX, REST_OF_ONE_MAX,
};
use super::registry::Command;

/// Fatal alerts (RFC 8446 section 6) in a plaintext record.
const ALERT_UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
const ALERT_DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 29\r\nConnection: close\r\n\r\nThis port speaks HTTPS only.\n";

/// Accepts for ever.
pub async fn run(cloud: Arc<Cloud>, listener: TcpListener) {
    let rest = Arc::new(Mutex::new(Places::new(REST_OF_ONE_MAX, REST_CONNECTIONS_MAX)));
    let mut limiter = Limiter::new(Instant::now());
    let (mut turn, mut failing) = (0, false);
    loop {
        if let Err(wait) = limiter.all.take(Instant::now()) {
            tokio::time::sleep(wait).await;
            continue;
        }
        let accepted = listener.accept().await;
        // Once for each time that it begins, not for each attempt.
        if let Err(e) = &accepted
            && !failing
        {
            tracing::warn!("the public port pauses: {e}");
        }
        failing = accepted.is_err();
        match accepted {
            Ok((stream, peer)) => match limiter.admit(peer.ip(), Instant::now()) {
                Some(evicted) => {
                    let (cloud, rest) = (Arc::clone(&cloud), Arc::clone(&rest));
                    tokio::spawn(connection(cloud, rest, stream, peer, evicted));
                }
                None => tracing::debug!(%peer, "refused: too many connections"),
            },
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
        turn += 1;
        if turn % ACCEPTS_PER_TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// One connection. Until it is known what it is, it ends when `evicted` does.
async fn connection(
    cloud: Arc<Cloud>,
    rest: Arc<Mutex<Places>>,
    stream: TcpStream,
    peer: SocketAddr,
    evicted: oneshot::Receiver<()>,
) {
    let greeted = tokio::select! {
        greeted = greet(&cloud, stream, peer) => greeted,
        _ = evicted => {
            tracing::debug!(%peer, "no ClientHello, and others want its place");
            None
        }
    };
    let Some((stream, first)) = greeted else {
        return;
    };
    let evicted = rest
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .add(network(peer.ip()));
    serve_rest(&cloud, Replayed { first, at: 0, stream }, evicted).await;
}

/// Reads the hello. Connections of tunnels and bad ones are dealt with here; what is REST's comes back.
async fn greet(cloud: &Cloud, mut stream: TcpStream, peer: SocketAddr) -> Option<(TcpStream, Vec<u8>)> {
    let mut reader = HelloReader::default();
    let Ok(name) = tokio::time::timeout(CLIENT_HELLO_MAX, read_hello(&mut stream, &mut reader)).await else {
        tracing::debug!(%peer, "no ClientHello in time");
        return None;
    };
    let name = match name {
        Ok(name) => name,
        Err(Malformed::NotTls) => {
            let http = reader.into_raw().first().is_some_and(u8::is_ascii_uppercase);
            refuse(stream, if http { PLAIN_HTTP } else { &ALERT_DECODE_ERROR }).await;
            return None;
        }
        Err(_) => {
            refuse(stream, &ALERT_DECODE_ERROR).await;
            return None;
        }
    };
    match place(name.as_deref()) {
        Place::Rest => Some((stream, reader.into_raw())),
        Place::Nowhere => {
            refuse(stream, &ALERT_UNRECOGNIZED_NAME).await;
            None
        }
        Place::Link { link, tunnel } => {
            let commands = cloud.registry().commands(&tunnel).filter(|_| link < LINKS_MAX);
            let Some(commands) = commands else {
                refuse(stream, &ALERT_UNRECOGNIZED_NAME).await;
                return None;
            };
            // A connection that is gone already needs no option.
            let _ = stream.set_nodelay(true);
            let socket = stream.into_std().ok()?.into();
            let first = reader.into_raw();
            // A tunnel that does not keep up loses this dial; its `sc` dials again.
            let command = Command::Link {
                tunnel: tunnel.clone(),
                link,
                socket,
                first,
            };
            if commands.try_send(command).is_err() {
                tracing::warn!(tunnel, link, "a link was dropped: its endpoint does not keep up");
            }
            None
        }
    }
}

async fn read_hello(stream: &mut TcpStream, reader: &mut HelloReader) -> Result<Option<String>, Malformed> {
    let mut buffer = [0u8; 2_048];
    loop {
        let length = stream.read(&mut buffer).await.map_err(|_| Malformed::Syntax)?;
        if length == 0 {
            return Err(Malformed::Syntax);
        }
        if let Some(name) = reader.push(&buffer[..length])? {
            return Ok(name);
        }
    }
}

/// Says why and closes. What the client still sends is read for a moment: closing over unread bytes would reset the
/// connection, and the client would never see the reason.
async fn refuse(mut stream: TcpStream, reason: &[u8]) {
    let farewell = async {
        stream.write_all(reason).await?;
        stream.shutdown().await?;
        let mut rest = stream.take(CLIENT_HELLO_BYTES_MAX as u64);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(ALERT_MAX, farewell).await;
}

async fn serve_rest(cloud: &Arc<Cloud>, stream: Replayed, mut evicted: oneshot::Receiver<()>) {
    let handshake = tokio::time::timeout(CLIENT_HELLO_MAX, cloud.tls.accept(stream));
    let done = tokio::select! {
        done = handshake => done,
        _ = &mut evicted => return,
    };
    match done {
        Ok(Ok(stream)) => super::rest::serve(cloud, stream, evicted).await,
        Ok(Err(e)) => tracing::debug!("TLS of REST: {e}"),
        Err(_) => tracing::debug!("TLS of REST: not done in time"),
    }
}

/// A connection whose first bytes have been read already: they are read once more.
pub struct Replayed {
    first: Vec<u8>,
    at: usize,
    stream: TcpStream,
}

impl AsyncRead for Replayed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let waiting = &self.first[self.at..];
        if waiting.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = waiting.len().min(buf.remaining());
        buf.put_slice(&waiting[..length]);
        self.at += length;
        if self.at == self.first.len() {
            self.first = Vec::new();
            self.at = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How many connections are let in, before anything is read of them.
struct Limiter {
    all: Bucket,
    each: HashMap<IpAddr, Bucket>,
    /// Of all addresses that have none of their own.
    others: Bucket,
    /// Connections whose hello is not complete.
    pending: Places,
}

impl Limiter {
    fn new(now: Instant) -> Self {
        Self {
            all: Bucket::new(ACCEPTS_BURST, ACCEPTS_PER_SECOND, now),
            each: HashMap::new(),
            others: rate_of_one(now),
            pending: Places::new(PENDING_OF_ONE_MAX, CLIENT_HELLOS_PENDING_MAX),
        }
    }

    /// Lets a connection in if its address may have one more, until what comes back ends.
    fn admit(&mut self, peer: IpAddr, now: Instant) -> Option<oneshot::Receiver<()>> {
        let peer = network(peer);
        self.rate(peer, now).take(now).ok()?;
        Some(self.pending.add(peer))
    }

    fn rate(&mut self, peer: IpAddr, now: Instant) -> &mut Bucket {
        if !self.each.contains_key(&peer) && self.each.len() >= ADDRESSES_MAX {
            self.each.retain(|_, rate| !rate.is_full(now));
            if self.each.len() >= ADDRESSES_MAX {
                return &mut self.others;
            }
        }
        self.each.entry(peer).or_insert_with(|| rate_of_one(now))
    }
}

fn rate_of_one(now: Instant) -> Bucket {
    Bucket::new(ACCEPTS_OF_ONE_BURST, ACCEPTS_OF_ONE_PER_SECOND, now)
}

/// Places for connections, so many for each address and for all together. Of each connection, oldest first: its
/// address, and a channel that the connection closes when it leaves, or that is dropped here to end it.
struct Places {
    of_one: usize,
    all: usize,
    taken: VecDeque<(IpAddr, oneshot::Sender<()>)>,
}

impl Places {
    fn new(of_one: usize, all: usize) -> Self {
        let taken = VecDeque::new();
        Self { of_one, all, taken }
    }

    /// A place for one more. At a bound the oldest makes room, so that silent connections keep nobody out: whoever
    /// means it says what it wants within a round trip.
    fn add(&mut self, peer: IpAddr) -> oneshot::Receiver<()> {
        self.taken.retain(|(_, place)| !place.is_closed());
        let own = |(address, _): &(IpAddr, _)| *address == peer;
        if self.taken.iter().filter(|place| own(place)).count() >= self.of_one {
            let oldest = self.taken.iter().position(own);
            oldest.and_then(|at| self.taken.remove(at));
        } else if self.taken.len() >= self.all {
            self.taken.pop_front();
        }
        let (place, evicted) = oneshot::channel();
        self.taken.push_back((peer, place));
        evicted
    }
}

/// Who may have an IPv6 address has the whole /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0b00_0000 + n).into()
    }

    #[test]
    fn one_address_does_not_use_up_the_place_of_others() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        let held: Vec<_> = (0..3_000).filter_map(|_| limiter.admit(address(1), now)).collect();
        assert_eq!(held.len(), ACCEPTS_OF_ONE_BURST as usize, "the rate");
        assert!(limiter.admit(address(1), now).is_none());
        assert!(limiter.admit(address(2), now).is_some());
        for n in 0..ADDRESSES_MAX as u32 * 2 {
            limiter.admit(address(n), now);
        }
        assert!(limiter.each.len() <= ADDRESSES_MAX);
        limiter.admit("12.0.0.1".parse().unwrap(), now + Duration::from_secs(60));
        assert_eq!(limiter.each.len(), 1);
    }

    #[test]
    fn silent_connections_make_room_for_new_ones() {
        let mut pending = Places::new(PENDING_OF_ONE_MAX, CLIENT_HELLOS_PENDING_MAX);
        let mut all: Vec<_> = (0..PENDING_OF_ONE_MAX).map(|_| pending.add(address(1))).collect();
        let mut newer = pending.add(address(1));
        assert!(
            all[0]
                .try_recv()
                .is_err_and(|e| e == oneshot::error::TryRecvError::Closed)
        );
        let open = |p: &mut oneshot::Receiver<()>| p.try_recv() == Err(oneshot::error::TryRecvError::Empty);
        assert!(all[1..].iter_mut().all(open) && open(&mut newer), "only the oldest");
        drop(all.split_off(1));
        let mut others: Vec<_> = (2..CLIENT_HELLOS_PENDING_MAX as u32 + 1)
            .map(|n| pending.add(address(n)))
            .collect();
        assert_eq!(pending.taken.len(), CLIENT_HELLOS_PENDING_MAX);
        assert!(open(&mut newer) && others.iter_mut().all(open));
        others.push(pending.add(address(9_999)));
        assert_eq!(pending.taken.len(), CLIENT_HELLOS_PENDING_MAX);
        assert!(!open(&mut newer) && others.iter_mut().all(open), "the oldest of all");
    }

    #[test]
    fn neighbours_in_one_ipv6_network_are_one() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
