"""The fixture `two_keys` with a table made by hand, and led elsewhere by hand.

model = Model(path.read_bytes())
annotate(model, SITES)
change = Retarget(model.dump())
change.to_symbol(change.model.add_undefined("elsewhere")).dump()
"""

from typing import Self

from staticcall.abi import static_call as abi
from tests.support.object_model import R_X86_64_64, R_X86_64_NONE, R_X86_64_PLT32, Entry, Model, Site

# Of the fixture two_keys, in the order that a table has.
SITES = (
    Site(".text", 0x33, "__SCK__one", tail=True),
    Site(".text", 0x38, "__SCK__two", tail=True),
    Site(".text", 0x20, "__SCK__two", tail=False),
    Site(".text", 0x25, "__SCK__one", tail=False),
    Site(".text", 0x2A, "__SCK__two", tail=False),
)
SIGNATURE = b"signed" + bytes(8) + (6).to_bytes(4, "big") + b"~Module signature appended~\n"
CALL, JMP = b"\xe8" + bytes(4), b"\xe9" + bytes(4)


class Retarget:
    """Leads the key `two` elsewhere: its slot, its trampoline and, if told so, all its sites."""

    def __init__(self, data: bytes) -> None:
        self.model = Model(data)

    def to_symbol(self, number: int, *, sites: bool = True) -> Self:
        model = self.model
        self._set(model.tables[model.number(".rela.data")], 8, R_X86_64_64, number, 0)
        self._set(model.tables[model.number(".rela.static_call.text")], 9, R_X86_64_PLT32, number, -4)
        self._code(".static_call.text", 8, JMP)
        if sites:
            self.sites_to(number)
        return self

    def sites_to(self, number: int) -> None:
        for offset, code in ((0x20, CALL), (0x2A, CALL), (0x38, JMP)):
            self._set(self.model.tables[self.model.number(".rela.text")], offset + 1, R_X86_64_PLT32, number, -4)
            self._code(".text", offset, code)

    def to_null(self) -> Self:
        for table, offset in (
            (".rela.data", 8),
            (".rela.static_call.text", 9),
            (".rela.text", 0x21),
            (".rela.text", 0x2B),
            (".rela.text", 0x39),
        ):
            self._clear(table, offset)
        self._code(".static_call.text", 8, abi.RET_TRAMPOLINE)
        self._code(".text", 0x20, abi.NOP5)
        self._code(".text", 0x2A, abi.NOP5)
        self._code(".text", 0x38, abi.RET_SITE)
        return self

    def to_return0(self) -> Self:
        self.to_symbol(self.model.add_undefined(abi.RETURN0))
        for offset in (0x20, 0x2A):
            self._clear(".rela.text", offset + 1)
            self._code(".text", offset, abi.RET0_CS)
        return self

    def _clear(self, table: str, offset: int) -> None:
        entry = self.model.entry(table, offset)
        entry.type, entry.symbol, entry.addend = R_X86_64_NONE, 0, 0

    def _set(self, entries: list[Entry], offset: int, kind: int, symbol: int, addend: int) -> None:
        """Change the entry for a place, or add one."""
        found = [entry for entry in entries if entry.offset == offset]
        entry = found[0] if found else Entry(offset, 0, 0, 0)
        entry.type, entry.symbol, entry.addend = kind, symbol, addend
        if not found:
            entries.append(entry)

    def _code(self, section: str, offset: int, code: bytes) -> None:
        self.model.section(section).content[offset : offset + len(code)] = code

    def dump(self) -> bytes:
        return self.model.dump()
