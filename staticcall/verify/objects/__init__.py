"""The proof of relocatable objects (ET_REL): annotated or retargeted, and changed in nothing else.

    elf -> structure, renumbered -> calls, table -> annotation        prove_annotation
    elf -> grown, entries -> places, states -> coherence -> retarget  prove_retarget
    proof: which of both it is; read_back: LIEF's opinion

Like the rest of this room it shares neither parser nor decoder with what it judges. It works on whole files in
memory, by columns, without any library: a build has thousands of objects.
"""
