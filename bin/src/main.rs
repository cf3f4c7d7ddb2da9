mod config;
mod document;
mod fleet;
mod policy_text;
mod ranges;
fn main() {}
