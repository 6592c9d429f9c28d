//! Notes what is read, and on whose behalf.
