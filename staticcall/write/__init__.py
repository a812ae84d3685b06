"""Writing: edits become a file, all of it or nothing."""

from staticcall.write.stage import (
    Staging,
    followed,
    publish_text,
    refuse_collisions,
    refuse_input_as_output,
    stage,
    stage_text,
)

__all__ = [
    "Staging",
    "followed",
    "publish_text",
    "refuse_collisions",
    "refuse_input_as_output",
    "stage",
    "stage_text",
]
