"""One file, open: to be reported on, planned for, and held against what was made of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self, cast

from staticcall.api.plan import Plan, Request, plan_of
from staticcall.api.report import Origin, Report, report_of
from staticcall.api.requests import (
    Danger,
    PolicyWord,
    aids_of,
    optional_path,
    path_of,
    policy_of,
    several,
    wanted_targets,
)
from staticcall.errors import StrPath, UsageError, printable
from staticcall.model.change import Proof
from staticcall.model.sites import PolicyName
from staticcall.pipeline.opened import OpenFile


def open(  # noqa: A001 - as in gzip, lzma and tarfile
    path: StrPath,
    member: str | None = None,
    *,
    vmlinux: StrPath | None = None,
    modules: StrPath | None = None,
    system_map: StrPath | None = None,
    debug_file: StrPath | None = None,
    debug_dir: StrPath | None = None,
    table: str | None = None,
) -> File:
    """Open one file with static calls, for reading.

    It may be a kernel (`vmlinux`, `vmlinuz`), a module (`.ko`, `.ko.xz`, ...), an object, an executable or a shared
    object, for x86-64; what is compressed is unpacked in memory. Use it in a `with` statement.

    Args:
        path: The file. A member of an archive can be named here too, as `FILE(MEMBER)`.
        member: Name of a member, where the file is an archive: `.a`, `.deb`, cpio. `members` lists them.
        vmlinux: The kernel of a module, for its keys and the types of its functions.
        modules: The folder with a module's other modules, for their keys.
        system_map: The System.map of a kernel, for the names.
        debug_file: The separate debug file, or unstripped twin, for the names.
        debug_dir: Where debug files lie by build id, as in `/usr/lib/debug`.
        table: Where the records are, `START:STOP` in hex or by two symbols, where the file does not say.

    Returns:
        The open file.

    Raises:
        InputError: It cannot be read.
        MalformedError: It breaks the format that it claims to have; `offset` says where.
        UnsupportedError: It is another kind of file, or an archive of which no member is named.

    Examples:
        >>> with staticcall.open("demo") as file:
        ...     print(file, len(file.report().sites))
        <File demo: EXEC> 3

        >>> staticcall.open("missing")
        Traceback (most recent call last):
        staticcall.errors.InputError: missing: cannot be opened: No such file or directory, check ...
    """
    aids = aids_of(vmlinux, modules, system_map, debug_file, debug_dir)
    return File(OpenFile(path_of(path, member), aids, table))


class File:
    """One open file. Made by `open`, to be used in a `with` statement.

    Everything that it gives is a value that stays good after it is closed. Any thread may use it; they take turns. It
    sees the file as it was when it was opened, and raises `InputError` once somebody has changed that.
    """

    __slots__ = ("__weakref__", "_opened", "path")

    def __init__(self, opened: OpenFile) -> None:
        self.path: Final[Path] = opened.path
        self._opened: OpenFile | None = opened

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._opened is None

    def report(
        self,
        *,
        policy: PolicyName | PolicyWord = PolicyName.LUTOMIRSKI,
        line: int = 64,
        keys: str | None = None,
        scan: bool = False,
        edits_file: StrPath | None = None,
        lines: bool = False,
        hashed: bool = False,
    ) -> Report:
        """What is there, what a policy would patch directly, and why not the rest.

        Asked again, with another policy for instance, it takes a fraction of the time of the first report: the file
        was read.

        Args:
            policy: The rules by which a site is patched directly: `lutomirski`, `rel32`, `block8`, `torvalds` or
                `kernel`.
            line: Bytes of a cache line, a power of two from 8 to 4096.
            keys: A glob; only keys whose name matches, and their sites.
            scan: Search the code as well as the table.
            edits_file: The undo file of the patch that made this file, which knows the sites that are pinned.
            lines: Look for the sites' lines in the source, by DWARF.
            hashed: Add the file's SHA-256.

        Returns:
            The report, a value.

        Raises:
            UsageError: There is no such policy, or the line is no power of two.
            MalformedError: The file contradicts itself.
            UnsafeError: The edits are those of another file.
            ValueError: The file is closed.

        Examples:
            >>> with staticcall.open("demo") as file:
            ...     {policy: file.report(policy=policy).summary.direct for policy in ("kernel", "torvalds")}
            {'kernel': 3, 'torvalds': 0}

            >>> with staticcall.open("demo") as file:
            ...     file.report(policy="lutomirsky")
            Traceback (most recent call last):
            staticcall.errors.UsageError: there is no policy 'lutomirsky', known are lutomirski, rel32, ...
        """
        opened = self._open()
        look = opened.look._replace(
            policy=policy_of(policy, line),
            keys=keys,
            scan=scan,
            edits=optional_path(edits_file),
            lines=lines,
            hashed=hashed,
        )
        return report_of(opened.values(look), Origin(look, opened.stamp))

    def plan(
        self,
        sets: Mapping[str, str] | None = None,
        *,
        bind: bool = False,
        pins: Iterable[str] = (),
        keys: str | None = None,
        policy: PolicyName | PolicyWord = PolicyName.LUTOMIRSKI,
        line: int = 64,
        force: Iterable[Danger] = (),
        relocs: StrPath | None = None,
        strip_signature: bool = False,
        sign_with: str | Sequence[str] = (),
        build_id: str = "keep",
    ) -> Plan:
        """Plan a rewrite, and check that nothing of it would crash later. Nothing is written: see `Plan.apply`.

        Args:
            sets: Leads keys elsewhere: from the names of keys to the names of functions, or to `NULL` (the call does
                nothing) or `RET0` (it gives 0).
            bind: Send all sites that the policy patches straight to their key's present target.
            pins: Names of keys whose direct sites shall stay as they are for ever.
            keys: A glob; `bind` is for keys whose name matches.
            policy: The rules by which a site is patched directly.
            line: Bytes of a cache line, a power of two from 8 to 4096.
            force: Dangers that the caller answers for, by their codes, and `type`: lead keys to functions of another
                type.
            relocs: The `vmlinux.relocs` of a kernel: which pointers move with it.
            strip_signature: Drop the signature of a module or boot image, which cannot hold.
            sign_with: A command that signs a module or boot image: its words, or text to be split as by a shell (no
                shell runs it). It gets the path of a copy, last or for `{}`.
            build_id: `keep`, `recompute`, or `seed:TEXT`.

        Returns:
            The plan, a value.

        Raises:
            UsageError: Nothing is asked for, or what cannot be meant.
            UnsafeError: Something would crash later, or a name is unknown; `code` says what, `advice` what to do.
            ValueError: The file is closed.

        Examples:
            >>> with staticcall.open("demo") as file:
            ...     plan = file.plan({"log": "log_print"})
            >>> plan
            <Plan for demo: keys 1, edits 4 (site 2, trampoline 1, key 1)>
            >>> [(change.key, change.before, change.after) for change in plan.changes]
            [('log', 'NULL', 'log_print')]

            >>> with staticcall.open("demo") as file:
            ...     file.plan({"chekcsum": "checksum_fast"})
            Traceback (most recent call last):
            staticcall.errors.UnsafeError: demo: there is no key chekcsum [unknown-key], ... checksum...
        """
        from staticcall.pipeline.patch import FORCE_TYPE, FORCEABLE, Outputs, Wishes, patch_image  # noqa: PLC0415 - 70 ms
        from staticcall.pipeline.seal import Seal, parse_build_id, split_command  # noqa: PLC0415 - as above

        opened = self._open()
        forced = frozenset(several("force", force))
        if unknown := sorted(forced - FORCEABLE.keys() - {FORCE_TYPE}):
            known = ", ".join(sorted((*FORCEABLE, FORCE_TYPE)))
            raise UsageError(f"there is no danger {unknown[0]!r} to force", advice=f"known are {known}")
        wishes = Wishes(wanted_targets(sets), bind, keys, forced, several("pins", pins))
        command = split_command(sign_with) if isinstance(sign_with, str) else tuple(sign_with)
        seal = Seal(strip_signature, command, parse_build_id(build_id))
        look = opened.look._replace(policy=policy_of(policy, line), keys=keys)
        look = look._replace(aids=look.aids._replace(relocs=optional_path(relocs)))
        opened.check_unchanged()
        planned = patch_image(self.path, look, wishes, Outputs(None), seal).plan
        opened.check_unchanged()
        return plan_of(self.path, Request(look, wishes, seal, planned))

    def verify(
        self, patched: StrPath, member: str | None = None, *, deep: bool = False, allow: Iterable[str] = ()
    ) -> Proof:
        """Prove that another file is this one plus legal edits, and nothing else, whoever made it.

        Every byte is compared. Neither the reader nor the decoder is that of `report` and `plan`.

        Args:
            patched: The other file.
            member: Name of a member, where that is an archive.
            deep: Compare the layouts by a third ELF reader too; slow on kernels.
            allow: Dangers that the caller answers for: `kaslr-slot`.

        Returns:
            What was proved.

        Raises:
            VerificationError: It does not hold; the message has the first thing that does not.
            InputError: One of the two cannot be read.
            ValueError: The file is closed.

        Examples:
            >>> with staticcall.open("demo") as file:
            ...     proof = file.plan(bind=True).apply("demo.bound")
            ...     file.verify("demo.bound") == proof
            True
        """
        from staticcall.pipeline.check import check_pair  # noqa: PLC0415 - 90 ms, for who verifies

        opened = self._open()
        opened.check_unchanged()
        proof = check_pair(
            self.path,
            path_of(patched, member),
            deep=deep,
            table=opened.place_of_table(),
            allowed=frozenset(several("allow", allow)),
        )
        opened.check_unchanged()
        return proof

    def close(self) -> None:
        """Close the file; what it gave stays good. Once is enough, and twice is no error."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _open(self) -> OpenFile:
        if self._opened is None:
            raise ValueError(f"{self.path} is closed")
        return self._opened

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Missing where the file could not even be opened.
        if cast("OpenFile | None", getattr(self, "_opened", None)) is not None:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open file cannot be pickled; its reports and plans can")

    def __repr__(self) -> str:
        opened = self._opened
        return printable(f"<File {self.path}: {'closed' if opened is None else opened.elf_type}>")
