//! Images of every format, which `qemu-img` makes, compared with what `qemu-img` reads from them.
//! Also images that must be refused, and what is left when a program that reads an image ends.

mod access;
mod captive;
mod containers;
mod evidence;
mod formats;
mod refusals;
mod support;
