"""Frozen values that pass between the rooms of the pipeline.

`image` is what was read, `sites` what was located and judged, `change` what is to be written and what was
proved, `report` what is told. Values that occur by the thousand are named tuples: they are immutable, cost
a fifth of a frozen dataclass to make, and nothing to import. Files that define them evaluate annotations as
they stand: postponed ones would be compiled from text again at every start, half a millisecond a class.
"""
