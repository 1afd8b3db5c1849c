//! What `mux` asks of a shell, played exactly: dials, HELLO and cut-over, reads, writes, closes.

use bytes::Bytes;
use dataplane::limits::{FRAME_HEADER_BYTES, LINK_WRITE_BYTES_MAX};
use dataplane::mux::Event;

use super::coverage::Cell;
use super::wire;
use super::world::{Wake, World};
use super::{CLIENT, Failure, Side};

impl World {
    // ── Turns of a session ────────────────────────────────────────────────────────────────────────────────────

    /// Drains what the sessions have to say until all are silent.
    pub fn settle(&mut self) {
        let mut turns = 0;
        while let Some((p, side)) = self.dirty.pop_front() {
            self.pairs[p].ends[side].queued = false;
            turns += 1;
            if turns > 100_000 {
                self.fail(Failure::new("busy loop", format!("link {p} side {side}")));
            }
            if self.failure.is_some() {
                return;
            }
            self.turn(p, side);
        }
        self.check_gone();
    }

    fn turn(&mut self, p: usize, side: Side) {
        let host = self.pairs[p].ends[side].host;
        if !self.pairs[p].ends[side].alive {
            return;
        }
        if self.hosts[host].suspended_until > self.now {
            self.push(self.hosts[host].suspended_until, Wake::Session(p, side));
            return;
        }
        self.drain_events(p, side);
        loop {
            self.unblock(host);
            self.transmit(p, side);
            self.unblock(host);
            if !self.drain_events(p, side) {
                break;
            }
        }
        if self.failure.is_some() || !self.pairs[p].ends[side].alive {
            return;
        }
        self.check_budgets(host);
        let end = &mut self.pairs[p].ends[side];
        if let Some(at) = end.session.poll_timeout().map(|t| t.as_micros())
            && at < end.armed
        {
            end.armed = at.max(self.now);
            self.push(at, Wake::Session(p, side));
        }
    }

    /// Acts on all events; whether there were any.
    pub fn drain_events(&mut self, p: usize, side: Side) -> bool {
        let mut any = false;
        loop {
            let end = &mut self.pairs[p].ends[side];
            if self.failure.is_some() || !end.alive {
                return false;
            }
            let mut events: Vec<_> = std::iter::from_fn(|| end.session.poll_event()).collect();
            if events.is_empty() {
                return any;
            }
            any = true;
            // A stream may be asked before the queue comes to the reason of its end.
            events.sort_by_key(|e| !matches!(e, Event::SessionEnded { .. }));
            for event in events {
                self.on_event(p, side, event);
            }
        }
    }

    pub fn session_due(&mut self, p: usize, side: Side) {
        let now = self.time();
        let end = &mut self.pairs[p].ends[side];
        end.armed = u64::MAX;
        if end.alive && end.session.poll_timeout().is_some_and(|t| t <= now) {
            let budget = &mut self.hosts[end.host].budget;
            end.session.handle_timeout(now, budget);
        }
        self.touch(p, side);
    }

    /// Streams that were refused room ask again.
    fn unblock(&mut self, host: usize) {
        let mut asked = 0;
        while let Some((key, r)) = self.hosts[host].budget.next_unblocked() {
            let p = key as usize;
            let side = usize::from(self.pairs[p].ends[CLIENT].host != host);
            let end = &mut self.pairs[p].ends[side];
            if end.alive && end.host == host {
                end.session.unblock(r);
                self.touch(p, side);
            }
            asked += 1;
            if asked > 20_000 {
                self.fail(Failure::new("busy loop", "next_unblocked has no end".into()));
                return;
            }
        }
    }

    fn transmit(&mut self, p: usize, side: Side) {
        let now = self.time();
        let mut out = Vec::new();
        loop {
            let end = &mut self.pairs[p].ends[side];
            let Some(c) = end.conn else { return };
            if end.writing || !self.conns[c].open[side] {
                return;
            }
            out.clear();
            let budget = &mut self.hosts[end.host].budget;
            let n = end.session.poll_transmit(now, budget, &mut out);
            if n != out.iter().map(Bytes::len).sum::<usize>() || n > LINK_WRITE_BYTES_MAX {
                let text = format!("poll_transmit says {n}");
                return self.fail(Failure::new("frames", text));
            }
            if n == 0 {
                if end.closing {
                    self.shut(c, side, true);
                }
                return;
            }
            for frame in &out {
                self.frame_leaves(p, c, side, frame);
            }
            let end = &mut self.pairs[p].ends[side];
            let pipe = &mut self.conns[c].pipes[side];
            pipe.write(self.now, &out);
            end.writing = !pipe.writable();
            self.arm_pipe(c, side);
        }
    }

    fn frame_leaves(&mut self, p: usize, c: usize, side: Side, frame: &Bytes) {
        let track = &mut self.pairs[p].ends[side].track;
        let conn = &mut self.conns[c];
        let before = conn.lines[side].replays;
        let header = match wire::said(side, track, &mut conn.lines, frame) {
            Ok(header) => header,
            Err(failure) => return self.fail(failure),
        };
        if conn.lines[side].replays > before {
            self.coverage.count("replayed frames", 1);
        } else {
            self.check_new_frame(p, side, header, frame);
        }
        self.note(|| {
            let name = super::coverage::name(header.kind);
            let end = &self.pairs[p].ends[side].track;
            format!(
                "link {p} conn {c} side {side} -> {name} stream {} length {} (sent {})",
                header.stream, header.length, end.sent
            )
        });
        let fits = |a: &Cell| a.kind == header.kind && a.side == side && (a.header || header.length > 0);
        let Some(i) = self.aims.iter().position(fits) else {
            return;
        };
        let conn = &mut self.conns[c];
        if conn.broken || conn.pipes[side].cut_at.is_some() {
            return;
        }
        let aim = self.aims.swap_remove(i);
        let Some(mark) = conn.lines[side].marks.back() else {
            return;
        };
        let head = FRAME_HEADER_BYTES as u64;
        let inside = match aim.header {
            true => self.rng.between(1, head - 1),
            false => self.rng.between(head, (mark.end - mark.start - 1).max(head)),
        };
        conn.pipes[side].cut_at = Some(mark.start + inside);
        conn.faulted = true;
    }

    // ── Events ────────────────────────────────────────────────────────────────────────────────────────────────

    fn on_event(&mut self, p: usize, side: Side, event: Event) {
        self.note(|| match &event {
            Event::Settings { version, .. } => format!("link {p} side {side}: Settings {version}"),
            event => format!("link {p} side {side}: {event:?}"),
        });
        match event {
            Event::Dial => self.dial(p),
            Event::Close(cause) => self.close(p, side, cause.aborts()),
            Event::Up { resumed } => self.on_up(p, side, resumed),
            Event::Live => {
                self.place_waiting();
                self.send_settings(self.pairs[p].slot);
            }
            Event::Settings { version, json } => self.settings_arrived(p, version, &json),
            Event::SettingsAck { version, .. } => {
                let slot = self.pairs[p].slot;
                let held = &mut self.slots[slot];
                held.known_version = version;
                if held.sent_on == Some(p) && version >= held.sent_version {
                    held.sent_on = None;
                }
                self.send_settings(slot);
            }
            Event::GoAway { .. } => self.pairs[p].draining = true,
            Event::Finished => {
                self.check_finished(p, side);
                self.pairs[p].ends[side].finished = true;
                self.replace_drained(p);
            }
            Event::SessionEnded {
                code,
                peer_at_fault,
                text,
            } => self.on_session_ended(p, side, code, peer_at_fault, &text),
            Event::Opened(r, open) => self.on_opened(p, side, r, &open),
            Event::Readable(r) => self.on_stream(p, side, r, Self::pump_reader),
            Event::Writable(r) => self.on_stream(p, side, r, Self::pump_writer),
            Event::Accepted(r, _) => self.on_stream(p, side, r, Self::on_accepted),
            Event::StartTls(r, ..) => self.on_stream(p, side, r, Self::on_start_tls),
            Event::TlsReport(r, _) => self.on_stream(p, side, r, Self::on_tls_report),
            Event::Withdrawn {
                stream,
                frames,
                finished,
            } => {
                if let Some(n) = self.pairs[p].ends[side].streams.get(&stream).copied() {
                    self.on_withdrawn(n, side, &frames, finished.is_some());
                }
            }
        }
    }

    fn on_stream(&mut self, p: usize, side: Side, r: dataplane::mux::StreamRef, then: fn(&mut Self, u32, Side)) {
        if let Some(n) = self.pairs[p].ends[side].streams.get(&r).copied() {
            then(self, n, side);
        }
    }
}
