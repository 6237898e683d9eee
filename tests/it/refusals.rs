//! What is refused: a message, a hint, an exit code, and nothing harmed.
