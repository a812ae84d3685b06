"""Whether the kernel in a file accepts what stands at its sites and in its trampolines, or stops at it.

A kernel looks at every site while it boots, changed or not, and at a trampoline when its static call is updated. What
it accepts depends on its generation; see `staticcall.abi.generations`. Files that are no kernel have no such limits.
"""

from __future__ import annotations

from typing import NoReturn

from staticcall.abi.generations import Generation
from staticcall.abi.static_call import SIGNATURE_OFFSET, TRAMPOLINE_SIZE
from staticcall.errors import VerificationError
from staticcall.verify.scene import Scene, Site, Trampoline

# What a kernel looks at; what stands behind belongs to something else.
_LOOKED_AT = 5


def check_accepted(scene: Scene) -> None:
    """Raise `VerificationError` for the first site or trampoline of the patched file that its kernel rejects.

    What the original has already is refused like all else: such a kernel does not run, so nothing can be proved about
    what it would do.
    """
    generation = scene.generation
    if generation is None:
        return
    calls, tails = generation.calls, generation.tails
    for site in scene.sites:
        if not site.after.startswith(tails if site.record.tail else calls) and site.after:
            _refuse_site(scene, generation, site)
    signature = generation.signature
    for key, home in scene.trampolines.items():
        code = home.after
        if not code.startswith(tails) or (signature and code[SIGNATURE_OFFSET:TRAMPOLINE_SIZE] != signature):
            _refuse_trampoline(scene, generation, key, home)


def _refuse_site(scene: Scene, generation: Generation, site: Site) -> NoReturn:
    code, tail = site.after[:_LOOKED_AT], site.record.tail
    some = " on every processor" if generation.by_processor(code, tail=tail) else ""
    was = generation.accepts(site.before[:_LOOKED_AT], tail=tail)
    raise VerificationError(
        f"the {'tail ' if tail else ''}site at {site.record.address:#x} of {scene.keys[site.record.key]} holds"
        f" {code.hex()}, which this kernel does not accept{some}: {generation.outcome('at boot')}{_blame(was=was)}",
        offset=site.offset,
    )


def _refuse_trampoline(scene: Scene, generation: Generation, key: int, home: Trampoline) -> NoReturn:
    unsigned = home.after.startswith(generation.tails)
    what = f"is not signed with {generation.signature.hex()}" if unsigned else f"begins with {home.after[:1].hex()}"
    was = generation.accepts(home.before, tail=True) and generation.signs(home.before)
    raise VerificationError(
        f"the trampoline at {home.address:#x} of {scene.keys[key]} ({home.after.hex()}) {what}, which this kernel does"
        f" not accept: {generation.outcome('when the static call is updated')}{_blame(was=was)}",
        offset=home.offset,
    )


def _blame(*, was: bool) -> str:
    return "" if was else "; the original has it already"
