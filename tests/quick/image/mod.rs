//! Images of every format, made by `qemu-img` and compared with what `qemu-img` reads of them;
//! images that must be refused; and what is left when a program that reads one ends.

mod captive;
mod formats;
mod refusals;
mod support;
