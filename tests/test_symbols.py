"""The symbol table by columns, against nm."""

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from staticcall.abi import static_call
from staticcall.read.image import open_image

SPECIAL = (
    static_call.TABLE_START,
    static_call.TABLE_STOP,
    static_call.RETURN_THUNK,
    static_call.RETURN0,
    static_call.PLAIN_RETURN,
    static_call.XOR_SYMBOL,
    static_call.BANNER_SYMBOL,
)
PREFIXES = (static_call.KEY_PREFIX, *static_call.TRAMPOLINE_PREFIXES)


def nm(path: Path) -> dict[str, set[int]]:
    """Every defined symbol's addresses by name."""
    listing = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    found: dict[str, set[int]] = defaultdict(set)
    for line in listing.splitlines():
        address, _, name = line.split(maxsplit=2)
        found[name].add(int(address, 16))
    return found


@pytest.mark.kernel
@pytest.mark.parametrize("kernel", ["vmlinux_612", "vmlinux_61"])
def test_the_names_of_static_calls_are_all_found(kernel: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kernel)
    expected = {
        (name, address)
        for name, addresses in nm(path).items()
        if name in SPECIAL or name.startswith(PREFIXES)
        for address in addresses
    }

    with open_image(path) as image:
        symbols = image.symbols.matching(static_call.SYMBOL_STEMS)
    found = {(symbol.name, symbol.address) for symbol in symbols}

    assert len(expected) > 1000
    assert expected <= found


@pytest.mark.kernel
def test_names_and_addresses_lead_to_each_other(vmlinux_612: Path) -> None:
    by_name = nm(vmlinux_612)
    names = ["schedule", "__x86_return_thunk", "native_sched_clock", "linux_banner"]
    by_address = defaultdict(set)
    for name, addresses in by_name.items():
        for address in addresses:
            by_address[address].add(name)

    with open_image(vmlinux_612) as image:
        for name in names:
            assert {symbol.address for symbol in image.symbols.named(name)} == by_name[name]
        few = {min(by_name[name]) for name in names}
        many = few | {address for address in sorted(by_address)[1000:2000] if address}
        for wanted in (few, many):
            found = image.symbols.names_at(wanted)
            assert found.keys() == wanted
            assert all(name in by_address[address] for address, name in found.items())
        inside = min(by_name["schedule"]) + 5
        symbol = image.symbols.containing(inside)
        assert symbol is not None
        assert symbol.name == "schedule"
