//! The lab on real servers: what it writes is judged to be well, and every kind of harm is found.

mod command_line;
mod harm;
mod load;
