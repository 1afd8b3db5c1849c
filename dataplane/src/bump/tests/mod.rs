//! Certificates of every kind, judged at one end and mirrored at the other; handshakes in memory, on a clock of their own.

mod defects;
mod hostile;
mod mirror;
mod names;
mod openssl;
mod pki;
mod reports;
mod resumption;
mod shake;
mod verdicts;
