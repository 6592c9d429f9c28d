//! What is read in the appliance, in which order, and what it is called.

pub mod layout;
