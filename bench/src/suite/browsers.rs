//! The browsers: they ask for one resource after the other on each of their connections, and look at every byte.

use std::rc::Rc;

use bytes::Bytes;

use super::{CONNECTIONS, TESTS};
use crate::heads;
use crate::page::{Pages, RESOURCES};

/// What a browser is sent.
pub enum Piece {
    Head(Vec<u8>),
    Body(Bytes),
    End,
}

/// What a browser sent.
pub struct Sent {
    pub connection: usize,
    pub request: Vec<u8>,
}

pub struct Browsers {
    pages: Rc<Pages>,
    connections: Vec<Connection>,
    /// Resources that each test has asked for, over all its pages: it loads its page again and again.
    asked: [usize; TESTS],
    /// Resources that each test asks for in all.
    wanted: usize,
    /// Requests that the endpoint has not taken yet.
    pub sent: Vec<Sent>,
    /// Resources that arrived whole, and their bytes.
    pub resources: usize,
    pub bytes: usize,
    /// Bytes of all requests.
    pub request_bytes: usize,
}

struct Connection {
    test: usize,
    resource: usize,
    /// Bytes of the body.
    received: usize,
}

impl Browsers {
    /// Each test loads its page `times` times.
    pub fn new(pages: Rc<Pages>, times: usize) -> Self {
        let connections = (0..TESTS * CONNECTIONS).map(|n| Connection {
            test: n % TESTS,
            resource: 0,
            received: 0,
        });
        let mut browsers = Self {
            pages,
            connections: connections.collect(),
            asked: [0; TESTS],
            wanted: times.saturating_mul(RESOURCES),
            sent: Vec::new(),
            resources: 0,
            bytes: 0,
            request_bytes: 0,
        };
        for connection in 0..TESTS * CONNECTIONS {
            browsers.ask(connection);
        }
        browsers
    }

    fn ask(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        let asked = &mut self.asked[connection.test];
        if *asked == self.wanted {
            return;
        }
        (connection.resource, connection.received) = (*asked % RESOURCES, 0);
        *asked += 1;
        let request = heads::request(connection.test, connection.resource);
        self.request_bytes += request.len();
        self.sent.push(Sent {
            connection: number,
            request,
        });
    }

    /// Looks at what was delivered, and asks for more where an answer ended.
    pub fn take(&mut self, delivered: &mut Vec<(usize, Piece)>) {
        for (number, piece) in delivered.drain(..) {
            let connection = &mut self.connections[number];
            let body = self.pages.body(connection.test, connection.resource);
            match piece {
                Piece::Head(head) => assert!(connection.received == 0 && head.ends_with(b"\r\n\r\n")),
                Piece::Body(bytes) => {
                    let end = connection.received + bytes.len();
                    assert!(
                        body.get(connection.received..end) == Some(&bytes[..]),
                        "a byte out of place"
                    );
                    connection.received = end;
                }
                Piece::End => {
                    assert_eq!(connection.received, body.len(), "an answer that is not whole");
                    self.resources += 1;
                    self.bytes += body.len();
                    self.ask(number);
                }
            }
        }
    }
}
