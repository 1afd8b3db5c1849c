//! The sites, as far as `sc` sees them: each request is answered at once and whole.

use std::collections::HashMap;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use dataplane::mux::StreamRef;

use crate::heads;
use crate::page::Pages;

pub struct Sites {
    pages: Rc<Pages>,
    answers: HashMap<StreamRef, Answer>,
}

struct Answer {
    head: Vec<u8>,
    page: usize,
    resource: usize,
    /// Bytes of the body that were read.
    sent: usize,
    /// Bytes of head and body that were not.
    left: usize,
}

/// One frame that is read from a site.
pub struct Read {
    pub stream: StreamRef,
    /// Head-room, then what the site filled in.
    pub frame: BytesMut,
    pub wanted: usize,
    /// Of this turn and stream.
    pub last: bool,
}

impl Sites {
    pub fn new(pages: Rc<Pages>) -> Self {
        Self {
            pages,
            answers: HashMap::new(),
        }
    }

    /// What a stream's site has to read.
    pub fn left(&self, stream: StreamRef) -> usize {
        self.answers.get(&stream).map_or(0, |answer| answer.left)
    }

    pub fn take(&mut self, requests: &mut Vec<(StreamRef, Bytes)>) {
        for (stream, request) in requests.drain(..) {
            let (page, resource) = heads::named(&request).expect("a request of ours");
            let body = self.pages.body(page, resource).len();
            let head = heads::answer(resource, Some(body));
            let answer = Answer {
                page,
                resource,
                sent: 0,
                left: head.len() + body,
                head,
            };
            self.answers.insert(stream, answer);
        }
    }

    /// What a read of a socket does.
    pub fn fill(&mut self, reads: &mut [Read]) {
        for Read {
            stream, frame, wanted, ..
        } in reads
        {
            let Some(answer) = self.answers.get_mut(stream) else {
                continue;
            };
            let of_head = answer.head.len().min(*wanted);
            frame.extend(answer.head.drain(..of_head));
            let of_body = *wanted - of_head;
            let body = self.pages.body(answer.page, answer.resource);
            frame.extend_from_slice(&body[answer.sent..answer.sent + of_body]);
            answer.sent += of_body;
            answer.left -= *wanted;
            if answer.left == 0 {
                self.answers.remove(stream);
            }
        }
    }
}
