//! What a node should have, as values: typed tables, chains and rules, their text, their differences,
//! and the transactions that carry a difference to the kernel.
//!
//! Pure: no socket, clock, log or lock. Below it is [`crate::netlink`], which turns these values into
//! messages and messages into these values; above it [`crate::render`], which makes them.

mod adopt;
mod applied;
mod block;
mod diff;
mod node_op;
pub mod node_text;
mod refresh;
mod rule;
mod set;
mod step;
pub mod text;
mod touched;
mod transaction;
mod virtual_server;

pub use adopt::{Adoption, Found};
pub use applied::Applied;
pub use block::{Block, Digest, Group, Kind, Layout, OwnedChain, Owner, Side, StaleHooks};
pub use diff::Planner;
pub use node_op::NodeOp;
pub use rule::{
    AddrType, ChainName, Comment, CtStates, InterfaceMatch, Match, Negatable, RecentAction, RejectWith, Rule, Table, Target,
};
pub use set::{Direction, Member, SetHeader, SetName, SetSpec, SetType};
pub use step::Step;
pub use touched::Touched;
pub use transaction::{Handle, Op, Place, Transaction};
pub use virtual_server::{Persistence, RealServer, ServerFlags, VirtualAddress, VirtualServer};
