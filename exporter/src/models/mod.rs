//! The architectures, one file each, written with the graph builder.
