//! A connection's life at both shells: dial, HELLO and cut-over, reads, the end.

use bytes::{Buf, Bytes, BytesMut};
use dataplane::limits::{FRAME_HEADER_BYTES, HANDSHAKE_MAX};
use dataplane::mux::frame::{self, Frame, Header};

use super::network::{Ending, Pipe};
use super::prng::Prng;
use super::wire::{self, Line};
use super::world::{Conn, SMALL_BYTES, Wake, World};
use super::{CLIENT, ENDPOINT, Failure, MS, SECOND, Side};

impl World {
    // ── Dials ─────────────────────────────────────────────────────────────────────────────────────────────────

    pub fn dial(&mut self, p: usize) {
        let pair = &self.pairs[p];
        let end = &pair.ends[CLIENT];
        if end.conn.is_some() || end.dialing.is_some() || end.finished {
            let text = format!("link {p} dials while it is connected, dialling or finished");
            return self.fail(Failure::new("dials", text));
        }
        self.check_dial(p);
        let pair = &self.pairs[p];
        let time_max = pair.ends[CLIENT].session.dial_time_max().as_micros() as u64;
        let round_trip = pair.path.profiles.iter().map(|f| f.delay_us).sum::<u64>();
        let faulted = !pair.path.healthy;
        let pipes = [CLIENT, ENDPOINT].map(|side| {
            let mut pipe = Pipe::new(pair.path.profiles[side], Prng::new(self.rng.draw()));
            pipe.dead = pair.path.dead[side];
            pipe.small_only = pair.path.small_only.then_some(SMALL_BYTES);
            pipe
        });
        let refused = pair.path.refuse || pair.ends[ENDPOINT].finished;
        self.conns.push(Conn {
            pair: p,
            pipes,
            lines: [Line::default(), Line::default()],
            open: [true, false],
            up: false,
            first: BytesMut::new(),
            faulted,
            broken: false,
            deaf: [false; 2],
            cut_ending: Ending::Reset,
            since: self.now,
            silent_since: [None; 2],
        });
        let c = self.conns.len() - 1;
        self.pairs[p].ends[CLIENT].dialing = Some(c);
        if refused {
            self.push(self.now + round_trip, Wake::DialDeadline(c));
        } else {
            self.push(self.now + 2 * round_trip, Wake::Dialled(c));
            self.push(self.now + time_max, Wake::DialDeadline(c));
        }
    }

    /// TCP and TLS are through, if the path carries them.
    pub fn dialled(&mut self, c: usize) {
        let p = self.conns[c].pair;
        let path = &self.pairs[p].path;
        let passes = !path.dead[0] && !path.dead[1];
        if self.pairs[p].ends[CLIENT].dialing != Some(c) || !passes {
            return;
        }
        let (late, now) = (path.late_us, self.time());
        let conn = &mut self.conns[c];
        conn.up = true;
        conn.open[ENDPOINT] = self.pairs[p].ends[ENDPOINT].alive;
        for pipe in &mut conn.pipes {
            pipe.dead = false;
            pipe.hold_until(self.now + late);
        }
        let end = &mut self.pairs[p].ends[CLIENT];
        end.dialing = None;
        end.conn = Some(c);
        end.writing = false;
        end.session.connected(now, &mut self.hosts[end.host].budget);
        self.touch(p, CLIENT);
        let limit = HANDSHAKE_MAX.as_micros() as u64;
        self.push(self.now + limit, Wake::Handshake(c));
    }

    pub fn dial_deadline(&mut self, c: usize) {
        let p = self.conns[c].pair;
        let now = self.time();
        let end = &mut self.pairs[p].ends[CLIENT];
        if end.alive && end.dialing == Some(c) {
            end.dialing = None;
            self.conns[c].open[CLIENT] = false;
            end.session.dial_failed(now);
            self.touch(p, CLIENT);
        }
    }

    // ── The endpoint's side of a new connection ───────────────────────────────────────────────────────────────

    pub fn handshake_deadline(&mut self, c: usize) {
        let end = &self.pairs[self.conns[c].pair].ends[ENDPOINT];
        let taken = end.cut_over.as_ref().is_some_and(|(n, _)| *n == c);
        if end.conn != Some(c) && !taken {
            self.reject(c);
        }
    }

    fn reject(&mut self, c: usize) {
        let conn = &mut self.conns[c];
        conn.open[ENDPOINT] = false;
        if conn.pipes[ENDPOINT].ending.is_none() {
            conn.pipes[ENDPOINT].ending = Some(Ending::Fin { notify: true });
        }
        conn.pipes[ENDPOINT].pump(self.now);
        self.arm_pipe(c, ENDPOINT);
    }

    /// Takes the link over once the whole HELLO of a waiting connection is there.
    fn try_hello(&mut self, c: usize) {
        let p = self.conns[c].pair;
        let first = &self.conns[c].first;
        let Some(Ok(header)) = Header::decode(first) else {
            return;
        };
        let whole = FRAME_HEADER_BYTES + header.length;
        if first.len() < whole || self.pairs[p].ends[ENDPOINT].cut_over.is_some() {
            return;
        }
        let payload = Bytes::copy_from_slice(&first[FRAME_HEADER_BYTES..whole]);
        let Ok(Frame::Hello(hello)) = frame::decode(header, payload) else {
            return self.fail(Failure::new("hello first", format!("{header:?}")));
        };
        let end = &mut self.pairs[p].ends[ENDPOINT];
        if end.finished {
            return self.reject(c);
        }
        let fresh = hello.epoch > end.epoch_accepted;
        let verdict = end.session.check_hello(&hello);
        if verdict.is_ok() != fresh {
            let text = format!("epoch {} judged {verdict:?}", hello.epoch);
            return self.fail(Failure::new("epoch", text));
        }
        if verdict.is_err() {
            self.coverage.count("old epochs refused", 1);
            return self.reject(c);
        }
        let end = &mut self.pairs[p].ends[ENDPOINT];
        end.epoch_accepted = hello.epoch;
        end.session.begin_cut_over();
        end.cut_over = Some((c, hello));
        let old = end.conn.is_some();
        let long = !self.pairs[p].path.healthy && self.rng.chance(50);
        if !old && !long {
            return self.cut_over_done(p);
        }
        let wait = self.rng.below(if long { 2 * SECOND } else { 60 * MS });
        self.push(self.now + wait, Wake::CutOver(p));
        if std::mem::take(&mut self.pairs[p].break_cut_over) {
            self.push(self.now + wait / 2, Wake::Break(c));
        }
    }

    pub fn cut_over_done(&mut self, p: usize) {
        if !self.pairs[p].ends[ENDPOINT].alive {
            return;
        }
        if let Some(old) = self.pairs[p].ends[ENDPOINT].conn {
            self.coverage.count("cut-overs of a living connection", 1);
            self.shut(old, ENDPOINT, false);
        }
        let now = self.time();
        let end = &mut self.pairs[p].ends[ENDPOINT];
        let Some((c, hello)) = end.cut_over.take() else {
            return;
        };
        let conn = &mut self.conns[c];
        let length = u16::from_be_bytes([conn.first[0], conn.first[1]]);
        let whole = FRAME_HEADER_BYTES + usize::from(length);
        wire::heard(ENDPOINT, &mut end.track, &mut conn.lines, &conn.first[..whole]);
        conn.first.advance(whole);
        let rest = conn.first.split().freeze();
        end.conn = Some(c);
        end.writing = false;
        end.closing = false;
        let budget = &mut self.hosts[end.host].budget;
        end.session.connected_by(now, budget, &hello);
        self.drain_events(p, ENDPOINT);
        self.touch(p, ENDPOINT);
        if !rest.is_empty() {
            self.feed(c, ENDPOINT, rest);
        }
        if !self.conns[c].open[ENDPOINT] {
            self.conns[c].open[ENDPOINT] = true;
            self.lost(c, ENDPOINT, false);
        }
        for other in 0..self.conns.len() {
            let conn = &self.conns[other];
            if conn.pair == p && conn.open[ENDPOINT] && !conn.first.is_empty() {
                self.try_hello(other);
            }
        }
    }

    // ── Reads and ends ────────────────────────────────────────────────────────────────────────────────────────

    /// Bytes that reach the shell of side `to`.
    pub fn feed(&mut self, c: usize, to: Side, bytes: Bytes) {
        let p = self.conns[c].pair;
        if !self.conns[c].open[to] || !self.pairs[p].ends[to].alive {
            return self.refuse_bytes(c, to);
        }
        if to == ENDPOINT && self.pairs[p].ends[ENDPOINT].conn != Some(c) {
            self.conns[c].first.extend_from_slice(&bytes);
            return self.try_hello(c);
        }
        let now = self.time();
        let end = &mut self.pairs[p].ends[to];
        let news = if self.conns[c].deaf[to] {
            Vec::new()
        } else {
            wire::heard(to, &mut end.track, &mut self.conns[c].lines, &bytes)
        };
        let budget = &mut self.hosts[end.host].budget;
        let copy = Bytes::copy_from_slice(&bytes);
        end.session.handle_bytes(now, budget, copy);
        self.touch(p, to);
        for heard in news {
            self.on_heard(p, to, heard);
        }
    }

    /// The kernel answers bytes for a closed socket with a reset.
    fn refuse_bytes(&mut self, c: usize, to: Side) {
        let pipe = &mut self.conns[c].pipes[to];
        if pipe.ending.is_none() {
            pipe.ending = Some(Ending::Reset);
            pipe.pump(self.now);
            self.arm_pipe(c, to);
        }
    }

    /// The shell of `side` sees the end of the connection.
    pub fn lost(&mut self, c: usize, side: Side, clean: bool) {
        if !std::mem::replace(&mut self.conns[c].open[side], false) {
            return;
        }
        self.note(|| format!("connection {c} is over for side {side}, clean {clean}"));
        let pipe = &mut self.conns[c].pipes[side];
        if pipe.ending.is_none() {
            pipe.ending = Some(Ending::Fin { notify: false });
        }
        pipe.pump(self.now);
        self.arm_pipe(c, side);
        self.gone(c, side, clean);
    }

    /// Tells the session that its connection is gone and all it brought was fed.
    pub fn gone(&mut self, c: usize, side: Side, clean: bool) {
        let p = self.conns[c].pair;
        let now = self.time();
        let end = &mut self.pairs[p].ends[side];
        if !end.alive || end.conn != Some(c) {
            return;
        }
        end.conn = None;
        end.writing = false;
        end.closing = false;
        end.closed_cleanly = clean;
        if end.track.sessions > 0 {
            end.lost_since.get_or_insert(self.now);
        }
        end.live_since = None;
        let budget = &mut self.hosts[end.host].budget;
        end.session.disconnected(now, budget, clean);
        self.touch(p, side);
    }

    pub fn close(&mut self, p: usize, side: Side, abort: bool) {
        let Some(c) = self.pairs[p].ends[side].conn else {
            return;
        };
        self.check_close(p, c, side);
        // Given up before its HELLO came, or with its session: what it still brings belongs to none.
        let unknown = side == CLIENT && !self.conns[c].lines[ENDPOINT].hello_read;
        let ended = self.pairs[p].ends[side].ended_at == Some(self.now);
        self.conns[c].deaf[side] |= unknown || ended;
        if abort {
            self.shut(c, side, false);
        } else {
            self.pairs[p].ends[side].closing = true;
            self.push(self.now + 2 * SECOND, Wake::Flush(c, side));
            self.touch(p, side);
        }
    }

    pub fn flushed(&mut self, c: usize, side: Side) {
        let end = &self.pairs[self.conns[c].pair].ends[side];
        if end.conn == Some(c) && end.closing {
            self.shut(c, side, false);
        }
    }

    /// Shuts the socket down, waits for the read in flight, feeds what it brought.
    pub fn shut(&mut self, c: usize, side: Side, notify: bool) {
        if !self.conns[c].open[side] {
            return;
        }
        self.note(|| format!("side {side} shuts connection {c}"));
        let until = self.now + self.rng.pick(&[0, 0, 500, 5 * MS, 100 * MS]);
        while let Some(bytes) = self.conns[c].pipes[1 - side].arrived(until) {
            if bytes.is_empty() {
                break;
            }
            self.coverage.hit("bytes at the shutdown");
            self.feed(c, side, bytes);
        }
        self.conns[c].open[side] = false;
        let late = self.rng.chance(60);
        // A broken path may swallow the end: the other side does not learn that this one has gone.
        let swallowed = !notify && !self.pairs[self.conns[c].pair].path.healthy && self.rng.chance(50);
        if swallowed {
            return self.gone(c, side, false);
        }
        let pipe = &mut self.conns[c].pipes[side];
        if pipe.ending.is_none() {
            let ending = Ending::Fin { notify };
            pipe.ending = Some(if late || notify { ending } else { Ending::Reset });
        }
        if !late && !notify {
            pipe.drop_unsent();
        }
        pipe.pump(self.now);
        self.arm_pipe(c, side);
        self.gone(c, side, false);
    }
}
