//! The one log of a node: one writer, many readers.
