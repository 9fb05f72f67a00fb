//! Commands of `edgectl`.
