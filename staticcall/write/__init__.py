"""Writing: edits become a file, all of it or nothing."""

from staticcall.write.stage import Staged, publish_text, refuse_input_as_output, stage

__all__ = ["Staged", "publish_text", "refuse_input_as_output", "stage"]
