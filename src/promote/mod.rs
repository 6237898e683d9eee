//! Facts about the nodes → a plan, or a refusal with its reason; pure.
