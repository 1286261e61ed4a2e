//! Software units and what the tests share.
