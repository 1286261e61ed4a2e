//! The seams over real machines. The only place with `unsafe`.
