"""Tests of staticcall, against real compilers, linkers, kernels and independent decoders."""
