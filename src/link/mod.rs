//! The connection between two sidecars: frames, messages, handshake.
