"""Random files against the program: structure-aware, and guided by what code they reach."""
