"""A distributed filesystem for Linux, mounted by FUSE: commands, mount and client library."""
