//! The report: the command as a user runs it, and its pages in a real browser.

mod browser;
mod command;
mod page;
