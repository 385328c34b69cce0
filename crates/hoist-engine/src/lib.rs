//! 
pub mod reference;
pub mod registry;
