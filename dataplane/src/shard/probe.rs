//! The self-test: a nonce goes over every live link of the process, is echoed by `sc`, and must come back.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

use super::link::Link;
use super::mailbox::Command;
use super::signal::Signal;
use super::{Shard, Stream, timers};
use crate::limits::{PROBE_BYTES_MAX, PROBE_MAX};
use crate::mux::{Code, Kind, Open, Recv};

/// How many links a shard's part went over, or what failed.
type Outcome = Result<usize, (Code, String)>;

/// The answers of the other shards.
#[derive(Default)]
pub(super) struct Pending {
    outcomes: RefCell<Vec<Outcome>>,
    answered: Signal,
}

impl Shard {
    /// Endpoint: carries `nonce` (1 … 1,024 bytes) in a `probe` stream over each live link that `member` has on any
    /// shard (`None`: over all links) and compares what comes back.
    ///
    /// # Errors
    /// Which link failed and how; `tunnel-down` without any live link.
    pub async fn probe(&self, member: Option<[u8; 16]>, nonce: &[u8]) -> Result<(), (Code, String)> {
        if nonce.is_empty() || nonce.len() > PROBE_BYTES_MAX {
            return Err((Code::Limit, "a nonce of a length that no self-test has".to_owned()));
        }
        let id = self.0.next_probe.get();
        self.0.next_probe.set(id + 1);
        let pending = Rc::new(Pending::default());
        self.0.probes.borrow_mut().insert(id, pending.clone());
        let _asked = Asked(self, id);
        let mut asked = 0;
        for (index, shard) in self
            .0
            .shards
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != self.0.index)
        {
            let probe = Command::Probe {
                member,
                nonce: nonce.to_vec(),
                from: self.0.index,
                id,
            };
            if shard.send(probe).is_err() {
                return Err((Code::Limit, format!("shard {index} is too busy")));
            }
            asked += 1;
        }
        let mut links = probe_links(self, member, nonce).await?;
        let all = async {
            while pending.outcomes.borrow().len() < asked {
                pending.answered.wait().await;
            }
        };
        timers::timeout(PROBE_MAX, all)
            .await
            .ok_or((Code::IdleTimeout, "a shard did not answer".to_owned()))?;
        for outcome in pending.outcomes.take() {
            links += outcome?;
        }
        if links == 0 {
            return Err((Code::TunnelDown, "no link is up".to_owned()));
        }
        Ok(())
    }

    pub(super) fn probed(&self, id: u64, outcome: Outcome) {
        if let Some(pending) = self.0.probes.borrow().get(&id) {
            pending.outcomes.borrow_mut().push(outcome);
            pending.answered.raise();
        }
    }
}

struct Asked<'a>(&'a Shard, u64);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.0.probes.borrow_mut().remove(&self.1);
    }
}

/// This shard's part of a self-test that another one was asked for.
pub(super) async fn answer(shard: Shard, member: Option<[u8; 16]>, nonce: Vec<u8>, from: usize, id: u64) {
    let result = probe_links(&shard, member, &nonce).await;
    if let Some(asker) = shard.0.shards.get(from) {
        // If it cannot be told, its own time runs out.
        let _ = asker.send(Command::Probed { id, result });
    }
}

/// One link after the other: there are few, and the first failure is the answer.
async fn probe_links(shard: &Shard, member: Option<[u8; 16]>, nonce: &[u8]) -> Outcome {
    let links = shard.0.links.borrow().clone();
    let wanted = |link: &&Rc<Link>| link.is_live() && member.is_none_or(|member| link.member == member);
    let mut probed = 0;
    for link in links.iter().filter(wanted) {
        timers::timeout(PROBE_MAX, probe_link(shard, link, nonce))
            .await
            .unwrap_or(Err((Code::IdleTimeout, format!("no echo within {PROBE_MAX:?}"))))
            .map_err(|(code, text)| (code, format!("{link}: {text}")))?;
        probed += 1;
    }
    Ok(probed)
}

async fn probe_link(shard: &Shard, link: &Rc<Link>, nonce: &[u8]) -> Result<(), (Code, String)> {
    let stopped = |code: Code| (code, "the self-test was stopped".to_owned());
    let open = Open {
        kind: Kind::Probe,
        settings: shard.rules_version(),
        credit: 0,
        port: 0,
        host: Bytes::new(),
        shown: None,
    };
    let stream = Stream::open_on(shard, link, open).ok_or((Code::TunnelDown, "not live".to_owned()))?;
    stream.send(nonce).await.map_err(stopped)?;
    stream.finish(None);
    let mut echo = Vec::new();
    loop {
        match stream.next().await {
            Recv::Data(bytes) => {
                if echo.len() + bytes.len() > nonce.len() {
                    return Err((Code::Protocol, "the echo is longer than the nonce".to_owned()));
                }
                echo.extend_from_slice(&bytes);
                stream.consumed(bytes.len());
            }
            Recv::Fin(_) if echo == nonce => return Ok(()),
            Recv::Fin(_) => return Err((Code::Protocol, "the echo differs from the nonce".to_owned())),
            Recv::Reset(code, _) => return Err(stopped(code)),
            Recv::Pending | Recv::Gone => return Err(stopped(Code::TunnelDown)),
        }
    }
}

/// `sc`: sends back what comes.
pub(super) async fn echo(stream: Stream) {
    let mut echoed = 0;
    loop {
        match stream.next().await {
            Recv::Data(bytes) => {
                echoed += bytes.len();
                if echoed > PROBE_BYTES_MAX {
                    return stream.reset(Code::Limit, "a self-test longer than its bound");
                }
                if stream.send(&bytes).await.is_err() {
                    return;
                }
                stream.consumed(bytes.len());
            }
            Recv::Fin(_) => return stream.finish(None),
            Recv::Reset(..) | Recv::Pending | Recv::Gone => return,
        }
    }
}
