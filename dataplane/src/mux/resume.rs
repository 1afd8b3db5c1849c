//! Retained frames, replay and acknowledgement.
