"""Where the header and the runtime's source are, for tests that build programs with them."""

from pathlib import Path
from typing import Final

import staticcall

_FOLDER: Final = Path(staticcall.__file__).parent / "runtime"
INCLUDE: Final = _FOLDER / "include"
RUNTIME: Final = _FOLDER / "staticcall.c"
FIXTURES: Final = Path(__file__).parents[2] / "fixtures"
