//! What the user types: one file per command.

pub mod check;
pub mod exit;
pub mod lag;
mod output;
pub mod status;
