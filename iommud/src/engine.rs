//! Runs plans on units; undoes the steps of a plan that fails.
