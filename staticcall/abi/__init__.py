"""The ABI facts, each in one place: `elf64` the container, `x86` the instructions, `static_call` the tables."""
