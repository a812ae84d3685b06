"""The proof of relocatable objects (ET_REL): annotated or retargeted, and changed in nothing else.

    elf -> structure, renumbered -> calls, table -> prove_annotation

Like the rest of this room it shares neither parser nor decoder with what it judges. It works on whole files in
memory, by columns, without any library: a build has thousands of objects.
"""

from staticcall.verify.objects.annotation import prove_annotation

__all__ = ["prove_annotation"]
