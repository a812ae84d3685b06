"""Planning: verdicts and wishes become a `Plan` of sorted, disjoint edits, or a refusal with its reason.

`wishes` resolves names, `safety` refuses what would crash later, `bytes` says what each place shall hold,
`transaction` puts one key's edits together, and `planner` the whole file's.
"""

from staticcall.plan.planner import make_plan, require_wish
from staticcall.plan.safety import FORCEABLE
from staticcall.plan.wishes import Wishes

__all__ = ["FORCEABLE", "Wishes", "make_plan", "require_wish"]
