//! The async NBD server.
