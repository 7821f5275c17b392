//! A guest on two nodes: two machines, and messages between them by hand.
