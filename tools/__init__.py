"""What works on the repository rather than on ELF files."""
