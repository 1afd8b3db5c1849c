//! The rules of a pool: all members have the same ones, and switch together. No I/O; time is an argument.
//!
//! A member alone is a pool of one: it agrees with itself at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::rules::Rules;
use dataplane::settings::Settings;

use super::limits::PROPOSALS_MAX;
use crate::api::difference;
use crate::secret::sha256;

/// Name of a member: the first half of its key's fingerprint.
pub type MemberId = [u8; 16];

type Hash = [u8; 32];

/// What is to be done about rules that were sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// These are the rules; each of these members knows them under this version of its own. `fresh`: they were not yet.
    Switch {
        settings: Arc<Settings>,
        versions: Vec<(MemberId, u32)>,
        fresh: bool,
    },
    Refuse {
        member: MemberId,
        version: u32,
        text: String,
    },
}

/// Rules that a member has sent and that are not in force yet.
struct Sent {
    version: u32,
    hash: Hash,
    since: Instant,
}

struct Seat {
    id: MemberId,
    /// On its way out: nobody waits for it.
    parting: bool,
    sent: Option<Sent>,
}

/// Rules that some member wants.
struct Proposal {
    hash: Hash,
    json: Vec<u8>,
    rules: Rules,
}

/// The rules in force, and what the members want instead.
pub struct Agreement {
    settings: Arc<Settings>,
    hash: Hash,
    /// How long a member's rules wait for those of the others.
    patience: Duration,
    seats: Vec<Seat>,
    /// What the hashes in `seats` stand for.
    proposals: Vec<Proposal>,
}

impl Agreement {
    pub fn new(settings: Arc<Settings>, patience: Duration) -> Self {
        Self {
            hash: sha256(&settings.json),
            settings,
            patience,
            seats: Vec::new(),
            proposals: Vec::new(),
        }
    }

    /// The rules in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A member that knows the rules in force.
    pub fn attach(&mut self, id: MemberId) {
        self.seats.retain(|s| s.id != id);
        self.seats.push(Seat {
            id,
            parting: false,
            sent: None,
        });
    }

    /// A member is on its way out: the others may agree without it.
    pub fn part(&mut self, id: MemberId) -> Option<Outcome> {
        let seat = self.seats.iter_mut().find(|s| s.id == id)?;
        (seat.parting, seat.sent) = (true, None);
        self.settle()
    }

    /// A member is gone.
    pub fn detach(&mut self, id: MemberId) -> Option<Outcome> {
        self.seats.retain(|s| s.id != id);
        self.settle()
    }

    /// A member sends rules, which have been compiled. None: they wait for those of the others.
    pub fn sent(&mut self, id: MemberId, version: u32, json: Vec<u8>, rules: Rules, now: Instant) -> Option<Outcome> {
        let hash = sha256(&json);
        let seat = self.seats.iter_mut().find(|s| s.id == id)?;
        if hash == self.hash {
            seat.sent = None;
            return Some(self.switch(vec![(id, version)], false));
        }
        if seat.parting {
            return Some(refuse(id, version, "this tunnel is on its way out".into()));
        }
        // A session that starts anew sends the same once more.
        let since = seat.sent.as_ref().filter(|s| s.hash == hash).map_or(now, |s| s.since);
        seat.sent = Some(Sent { version, hash, since });
        self.forget_unwanted();
        if !self.proposals.iter().any(|p| p.hash == hash) {
            if self.proposals.len() == PROPOSALS_MAX {
                return self.refuse(id, &json, "the tunnels of the pool want several different rules");
            }
            self.proposals.push(Proposal { hash, json, rules });
        }
        self.settle()
    }

    /// When `expire` is due.
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = self.seats.iter().filter_map(|s| s.sent.as_ref());
        waiting.map(|s| s.since + self.patience).min()
    }

    /// Refuses rules that have waited too long, one a call.
    pub fn expire(&mut self, now: Instant) -> Option<Outcome> {
        let late = |s: &&Seat| s.sent.as_ref().is_some_and(|sent| now >= sent.since + self.patience);
        let seat = self.seats.iter().find(late)?;
        let (id, hash) = (seat.id, seat.sent.as_ref()?.hash);
        let json = self.json_of(&hash).to_vec();
        let why = format!("the pool has not agreed within {} s", self.patience.as_secs_f32());
        let refused = self.refuse(id, &json, &why);
        self.forget_unwanted();
        refused
    }

    /// Switches once every member that stays has sent the same.
    fn settle(&mut self) -> Option<Outcome> {
        let mut wanted = None;
        let mut versions = Vec::new();
        for seat in self.seats.iter().filter(|s| !s.parting) {
            let sent = seat.sent.as_ref()?;
            if *wanted.get_or_insert(sent.hash) != sent.hash {
                return None;
            }
            versions.push((seat.id, sent.version));
        }
        let hash = wanted?;
        let at = self.proposals.iter().position(|p| p.hash == hash)?;
        let agreed = self.proposals.swap_remove(at);
        self.settings = Arc::new(Settings {
            // Also where the members' own are lower: what was asked of one version need not be asked again.
            version: self.settings.version.saturating_add(1),
            json: agreed.json.into(),
            rules: Arc::new(agreed.rules),
            times: self.settings.times,
        });
        self.hash = hash;
        self.seats.iter_mut().for_each(|s| s.sent = None);
        self.proposals.clear();
        Some(self.switch(versions, true))
    }

    fn switch(&mut self, versions: Vec<(MemberId, u32)>, fresh: bool) -> Outcome {
        let highest = versions.iter().map(|(_, v)| *v).max().unwrap_or_default();
        if highest > self.settings.version {
            Arc::make_mut(&mut self.settings).version = highest;
        }
        Outcome::Switch {
            settings: Arc::clone(&self.settings),
            versions,
            fresh,
        }
    }

    fn refuse(&mut self, id: MemberId, json: &[u8], why: &str) -> Option<Outcome> {
        let hash = sha256(json);
        let others = self.seats.iter().filter(|s| s.id != id && !s.parting);
        let mut views = others.map(|s| s.sent.as_ref().map_or(self.hash, |sent| sent.hash));
        let other = views.find(|view| *view != hash).map(|view| self.json_of(&view));
        let what = other.and_then(|other| difference(json, other)).unwrap_or_default();
        let seat = self.seats.iter_mut().find(|s| s.id == id)?;
        let version = seat.sent.take()?.version;
        Some(refuse(id, version, format!("{why}: {what}")))
    }

    fn json_of(&self, hash: &Hash) -> &[u8] {
        let proposal = self.proposals.iter().find(|p| p.hash == *hash);
        proposal.map_or(&self.settings.json, |p| &p.json)
    }

    fn forget_unwanted(&mut self) {
        let wanted = |hash: &Hash| {
            let mut sent = self.seats.iter().filter_map(|s| s.sent.as_ref());
            sent.any(|s| s.hash == *hash)
        };
        self.proposals.retain(|p| wanted(&p.hash));
    }
}

fn refuse(member: MemberId, version: u32, text: String) -> Outcome {
    Outcome::Refuse { member, version, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MemberId = [1; 16];
    const B: MemberId = [2; 16];
    const C: MemberId = [3; 16];
    const PATIENCE: Duration = Duration::from_secs(60);

    fn rules(domain: &str) -> Vec<u8> {
        format!(r#"{{"direct_domains":["{domain}"],"domain_names":[]}}"#).into_bytes()
    }

    fn pool(members: &[MemberId]) -> Agreement {
        let settings = Settings {
            version: 1,
            json: rules("old").into(),
            ..Settings::default()
        };
        let mut agreement = Agreement::new(Arc::new(settings), PATIENCE);
        members.iter().for_each(|id| agreement.attach(*id));
        agreement
    }

    fn switched(outcome: Option<Outcome>, domain: &str, expected: &[(MemberId, u32)], is_fresh: bool) {
        match outcome {
            Some(Outcome::Switch {
                settings,
                versions,
                fresh,
            }) => {
                assert_eq!(settings.json, rules(domain));
                assert_eq!((versions.as_slice(), fresh), (expected, is_fresh));
                assert!(expected.iter().all(|(_, v)| settings.version >= *v));
            }
            other => panic!("{other:?}"),
        }
    }

    fn refusal(outcome: Option<Outcome>) -> (MemberId, u32, String) {
        match outcome {
            Some(Outcome::Refuse { member, version, text }) => (member, version, text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_alone_switches_at_once() {
        let (mut pool, now) = (pool(&[A]), Instant::now());
        switched(
            pool.sent(A, 2, rules("new"), Rules::default(), now),
            "new",
            &[(A, 2)],
            true,
        );
        assert_eq!((pool.deadline(), pool.expire(now + 2 * PATIENCE)), (None, None));
        assert_eq!(pool.sent(B, 2, rules("stranger"), Rules::default(), now), None);
    }

    #[test]
    fn all_switch_when_the_last_has_sent_the_same() {
        let (mut pool, now) = (pool(&[A, B, C]), Instant::now());
        assert_eq!(pool.sent(A, 7, rules("new"), Rules::default(), now), None);
        assert_eq!(pool.deadline(), Some(now + PATIENCE));
        assert_eq!(
            pool.sent(B, 2, rules("new"), Rules::default(), now + PATIENCE / 2),
            None
        );
        let outcome = pool.sent(C, 3, rules("new"), Rules::default(), now + PATIENCE / 2);
        switched(outcome, "new", &[(A, 7), (B, 2), (C, 3)], true);
        assert_eq!(pool.deadline(), None);
    }

    #[test]
    fn new_rules_have_a_version_that_none_had_before() {
        let (mut pool, now) = (pool(&[A, B]), Instant::now());
        assert_eq!(pool.sent(A, 7, rules("new"), Rules::default(), now), None);
        let both = [(A, 7), (B, 2)];
        switched(pool.sent(B, 2, rules("new"), Rules::default(), now), "new", &both, true);
        assert_eq!((pool.settings().version, pool.detach(A)), (7, None));
        let outcome = pool.sent(B, 3, rules("newer"), Rules::default(), now);
        switched(outcome, "newer", &[(B, 3)], true);
        assert_eq!(pool.settings().version, 8);
    }

    #[test]
    fn the_rules_in_force_are_taken_from_one_alone() {
        let (mut pool, now) = (pool(&[A, B]), Instant::now());
        switched(
            pool.sent(A, 5, rules("old"), Rules::default(), now),
            "old",
            &[(A, 5)],
            false,
        );
        assert_eq!(pool.deadline(), None);
    }

    #[test]
    fn who_waits_in_vain_is_told_the_difference() {
        let (mut pool, now) = (pool(&[A, B]), Instant::now());
        assert_eq!(pool.sent(A, 2, rules("new"), Rules::default(), now), None);
        // A session that starts anew does not start the time anew.
        assert_eq!(
            pool.sent(A, 2, rules("new"), Rules::default(), now + PATIENCE / 2),
            None
        );
        assert_eq!(pool.expire(now + PATIENCE - Duration::from_millis(1)), None);
        let (member, version, text) = refusal(pool.expire(now + PATIENCE));
        assert_eq!((member, version), (A, 2));
        for part in ["60 s", "direct_domains", "new", "old"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(!text.contains("domain_names"), "{text}");
        assert_eq!((pool.deadline(), pool.expire(now + 2 * PATIENCE)), (None, None));
        // What was refused counts no more.
        assert_eq!(pool.sent(B, 2, rules("new"), Rules::default(), now + PATIENCE), None);
    }

    #[test]
    fn two_opinions_wait_and_a_third_is_refused() {
        let (mut pool, now) = (pool(&[A, B, C]), Instant::now());
        assert_eq!(pool.sent(A, 2, rules("a"), Rules::default(), now), None);
        assert_eq!(pool.sent(B, 2, rules("b"), Rules::default(), now), None);
        let (member, _, text) = refusal(pool.sent(C, 2, rules("c"), Rules::default(), now));
        assert!(member == C && text.contains("direct_domains"), "{text}");
        // A changes its mind: its old opinion makes room.
        assert_eq!(pool.sent(A, 3, rules("b"), Rules::default(), now), None);
        switched(
            pool.sent(C, 3, rules("b"), Rules::default(), now),
            "b",
            &[(A, 3), (B, 2), (C, 3)],
            true,
        );
    }

    #[test]
    fn nobody_waits_for_who_leaves() {
        for leave in [Agreement::part, Agreement::detach] {
            let (mut pool, now) = (pool(&[A, B]), Instant::now());
            assert_eq!(pool.sent(A, 2, rules("new"), Rules::default(), now), None);
            switched(leave(&mut pool, B), "new", &[(A, 2)], true);
        }
        let (mut pool, now) = (pool(&[A, B]), Instant::now());
        assert_eq!(pool.part(B), None);
        let (member, ..) = refusal(pool.sent(B, 2, rules("new"), Rules::default(), now));
        assert_eq!(member, B);
        assert_eq!(pool.detach(A), None, "nobody has sent anything");
    }
}
