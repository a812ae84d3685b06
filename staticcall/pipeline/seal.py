"""What says that a file is genuine, or which build it is: signatures and build ids after a patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from staticcall.errors import UnsafeError, UsageError
from staticcall.model.change import Edit, Plan
from staticcall.model.container import BzImage, Layer
from staticcall.model.image import Image
from staticcall.pipeline.trace import doing
from staticcall.plan.build_id import BuildIdWish, new_build_id, sha1_of
from staticcall.plan.build_id import parse_wish as parse_build_id
from staticcall.write.sign import sign, split_command

__all__ = ["Seal", "parse_build_id", "split_command"]


class Seal(NamedTuple):
    """What is to become of a signature and of the build id.

    A signature would not hold for what was patched: it is dropped with `strip_signature`, made anew by the command
    `sign_with`, and else in the way.
    """

    strip_signature: bool = False
    sign_with: tuple[str, ...] = ()
    build_id: BuildIdWish = BuildIdWish()

    @property
    def drops_signature(self) -> bool:
        """Whether the original's signature may go."""
        return self.strip_signature or bool(self.sign_with)


NO_SEAL = Seal()


def check_seal(image: Image, layers: Sequence[Layer], seal: Seal) -> None:
    """Raise `UsageError` where a signature is wanted that the file cannot have, `UnsafeError` for one in the way."""
    if seal.strip_signature and seal.sign_with:
        raise UsageError("give one of --strip-signature and --sign-with")
    module = image.placement is not None
    if seal.sign_with and not module and not any(isinstance(layer, BzImage) for layer in layers):
        raise UsageError("only a module or a bzImage can be signed", path=image.path, advice="leave out --sign-with")
    if image.placement is not None and image.placement.file.signed and not seal.drops_signature:
        raise UnsafeError(
            "is signed, and its signature would not hold for a patched module",
            code="module-signature",
            advice="--strip-signature to drop it, --sign-with CMD to sign the result",
        )


def with_build_id(image: Image, plan: Plan, seal: Seal) -> Plan:
    """The plan of a linked image with the edits of its build id; raises `UnsafeError` where it has none."""

    def digest(more: Sequence[Edit]) -> bytes:
        return sha1_of(image.source, (*plan.edits, *more))

    more = new_build_id(image, seal.build_id, digest)
    if not more:
        return plan
    return plan._replace(edits=tuple(sorted((*plan.edits, *more), key=lambda edit: edit.file_offset)))


def sign_module(unsigned: bytes, seal: Seal) -> bytes:
    """The module as the user's command signs it, or as it is where there is none.

    Raises `OutputError` where that fails, `VerificationError` where it did anything else.
    """
    if not seal.sign_with:
        return unsigned
    from staticcall.verify.objects.signature import check_signed  # noqa: PLC0415 - only where something is signed

    doing("")  # the command may ask for a passphrase
    signed = sign(seal.sign_with, unsigned, "module.ko")
    doing("proving the signed module")
    check_signed(unsigned, signed)
    return signed


def sign_image(unsigned: bytes, seal: Seal) -> bytes:
    """The same of a boot image."""
    if not seal.sign_with:
        return unsigned
    from staticcall.verify.authenticode import check_signed_image  # noqa: PLC0415 - only where something is signed

    doing("")  # as above
    signed = sign(seal.sign_with, unsigned, "vmlinuz")
    doing("proving the signed image")
    check_signed_image(unsigned, signed)
    return signed
