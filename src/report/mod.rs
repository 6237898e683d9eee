//! Status: plain facts; lag from them; one file per rendering.
