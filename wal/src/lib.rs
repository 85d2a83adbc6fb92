//! A segmented write-ahead log over an injected disk.
