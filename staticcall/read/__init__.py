"""Reading: a path becomes an `Image`. The only room that opens input files."""
