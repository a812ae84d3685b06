"""What is to be changed, to be looked at before it is; and doing it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from staticcall.api.requests import optional_path, path_of
from staticcall.errors import StrPath, printable
from staticcall.model.change import Edit, KeyChange, Proof
from staticcall.model.change import Plan as PlannedEdits
from staticcall.model.sites import Policy
from staticcall.pipeline.look import Look

if TYPE_CHECKING:
    from staticcall.pipeline.patch import Wishes
    from staticcall.pipeline.seal import Seal


class Change(NamedTuple):
    """What becomes of one key; its sites, its trampoline and its slot change together, or not at all.

    Attributes:
        key: Name of the key, without `__SCK__`.
        before: The function that it leads to, or `NULL`.
        after: The function that it shall lead to, or `NULL`; the same where the key is only bound or pinned.
        direct: How many of its sites go straight to that.
        by_trampoline: How many go by the trampoline.
        pinned: How many lose their records and stay as they are for ever; None where that was not asked for.
        types: What is known of the types of the two functions, a sentence; empty where nothing needs to be.
    """

    key: str
    before: str
    after: str
    direct: int
    by_trampoline: int
    pinned: int | None
    types: str


@dataclass(frozen=True, slots=True)
class Request:
    """All that was asked for, to ask for it again."""

    look: Look
    wishes: Wishes
    seal: Seal
    plan: PlannedEdits


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """A rewrite that was planned and checked, and not done.

    Made by `File.plan`. A value, as a report is; nothing was written to make it.

    Attributes:
        path: The file that it is for.
        policy: The policy that says which sites go direct.
        changes: By key.
        edits: Sorted by their offset in the file, disjoint, each with its old and new bytes.
        undefined: Names of functions that an object shall refer to and does not know yet.
    """

    path: Path
    policy: Policy
    changes: tuple[Change, ...]
    edits: tuple[Edit, ...]
    undefined: tuple[str, ...]
    _request: Request = field(compare=False)

    def apply(self, output: StrPath, *, edits_file: StrPath | None = None, report_file: StrPath | None = None) -> Proof:
        """Write the rewritten file, proved before it appears.

        The file is read and planned again, and nothing is written where that gives another plan. Another ELF reader
        and another decoder then prove that the result is the original plus these edits, and only after that does it
        get its name, by one rename: a file that had the name before is replaced as a whole, or stays. The input is
        never written to. Where a thread fails or a process is killed, the two others do not appear either.

        Args:
            output: Where the rewritten file goes. What was compressed is compressed; a member of an archive becomes
                a file of its own.
            edits_file: Where the undo file goes, which `revert` takes.
            report_file: Where a report on the result goes, in the form that its suffix says.

        Returns:
            What was proved.

        Raises:
            UsageError: The output is the input, or two names are of one file.
            InputError: The file is not any more what was planned for.
            UnsafeError: Something would crash later.
            OutputError: The output cannot be written, or the command that signs failed.
            VerificationError: The proof failed.

        Examples:
            >>> with staticcall.open("demo") as file:
            ...     plan = file.plan({"checksum": "checksum_fast"})
            >>> proof = plan.apply("demo.fast", edits_file="undo.json")
            >>> proof.changed_keys
            ('checksum',)
            >>> with staticcall.open("demo.fast") as file:
            ...     [key.func for key in file.report(keys="checksum").keys]
            ['checksum_fast']
        """
        from staticcall.pipeline.patch import Outputs, output_of, patch_image  # noqa: PLC0415 - 70 ms, for who writes

        edits, report = optional_path(edits_file), optional_path(report_file)
        request = self._request
        target = output_of(
            self.path, path_of(output), in_place=False, others=(edits, report), inputs=request.look.aids.files
        )
        outputs = Outputs(target, edits, report)
        done = patch_image(self.path, request.look, request.wishes, outputs, request.seal, request.plan)
        assert done.proof is not None, "nothing is published without a proof"
        return done.proof

    def describe(self, *, verbose: bool = False) -> str:
        """What is planned, in lines for a person, as `staticcall patch --dry-run` says it.

        Args:
            verbose: List every edit.

        Returns:
            Lines, each with a newline.

        Examples:
            >>> with staticcall.open("demo") as file:
            ...     print(file.plan({"checksum": "checksum_fast"}).describe())
              checksum: checksum_plain -> checksum_fast, 1 site direct, 0 by trampoline
                ...
              3 edits, ... bytes
        """
        from staticcall.pipeline.patch import Patched, describe  # noqa: PLC0415 - as above

        return describe(Patched(self._request.plan, None), verbose=verbose)

    def __repr__(self) -> str:
        kinds = Counter(edit.kind.value for edit in self.edits)
        counts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()) or "none"
        return printable(f"<Plan for {self.path}: keys {len(self.changes):,}, edits {len(self.edits):,} ({counts})>")


def plan_of(path: Path, request: Request) -> Plan:
    """The plan out of what was planned."""
    planned = request.plan
    changes = tuple(map(_change, planned.changes))
    return Plan(path, request.look.policy, changes, planned.edits, planned.undefined, request)


def _change(change: KeyChange) -> Change:
    return Change(
        change.key.name,
        change.before.name,
        change.after.name,
        change.direct,
        change.by_trampoline,
        change.pinned,
        change.types,
    )
