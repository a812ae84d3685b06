"""The proof of linked images: a patched file is its original plus legal edits, and nothing else.

    layout -> names, records, relocations -> scene -> rules -> compare -> edits -> Proof

This room shares neither parser nor decoder with the rest, so that one mistake cannot be made twice:
pyelftools reads here, capstone decodes, and the legal bytes are told by rules of its own. `second_reader`
adds LIEF's opinion.
"""
