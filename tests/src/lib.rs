
pub mod simulation;
