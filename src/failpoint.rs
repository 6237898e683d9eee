//! Named failure points, in debug builds only.
