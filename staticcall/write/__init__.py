"""Writing: edits become a file, all of it or nothing."""
