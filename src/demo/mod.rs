//! A cluster, a link proxy, a ledger and a story: what `walship demo` and the tests stand on.
