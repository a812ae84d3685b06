"""Where a key may lead: the functions that an image's own code and data hand to the updates of its static calls.

`__static_call_update(key, trampoline, function)` is called with constants nearly everywhere, so the calls themselves
tell. A wrapper that hands its own argument on is asked for its callers. Where the function comes out of a variable,
as those of `struct x86_pmu` and `struct apic` do, what the code stores there and what variables of the same size have
at the same place are taken for it, and the key stays open. Three users of static calls keep theirs in tables:

    tracepoints      the event's probes (struct trace_event_call, struct trace_event_class, struct bpf_raw_event_map),
                     the iterator, and what tracepoint_probe_register() is called with
    security hooks   struct security_hook_list: where the hook's static calls are, then the function
    user programs    struct static_call_change: the key, then the function

Sources: include/linux/static_call.h, include/linux/tracepoint.h, include/linux/trace_events.h,
include/linux/lsm_hooks.h, security/security.c, kernel/tracepoint.c, Linux 5.10 to 6.12; staticcall.h.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

from staticcall.abi import elf64
from staticcall.locate.flow import Call, Kind, Value, Values, constants, follow
from staticcall.locate.pointers import Pointers, branches_to, references_to, stores
from staticcall.model.image import Image
from staticcall.model.integrity import KnownTargets, TargetSource
from staticcall.model.sites import Located, TargetKind
from staticcall.model.symbols import Symbol

_UPDATE = "__static_call_update"
_REGISTER = (
    "tracepoint_probe_register",
    "tracepoint_probe_register_prio",
    "tracepoint_probe_register_prio_may_exist",
    "tracepoint_probe_register_may_exist",
)
_TRACE_KEY, _HOOK_KEY = "tp_func_", "lsm_static_call_"
_TRACEPOINT, _ITERATOR, _STUBS = "__tracepoint_", "__traceiter_", "__probestub_"
_PROBES = ("trace_event_raw_event_", "perf_trace_", "__bpf_trace_")
_STEMS = (
    (b"static_call_update", (2,)),
    (b"tracepoint_probe_register", (0,)),
    (b"tp_stub_func", (0,)),
    *((name.encode(), (0,)) for name in (_TRACEPOINT, _ITERATOR, _STUBS)),
)
_STUB = "tp_stub_func"
# The places of the arguments.
_KEY, _PROBE, _FUNCTION = 0, 1, 2
_WORD = elf64.POINTER_SIZE
# A damaged symbol can make a function of all the code.
_LONGEST_FUNCTION = 1 << 20
# A variable smaller than this has too many of its size.
_SMALLEST_TABLE = 64
_LARGEST_TABLE = 4096


def locate_targets(image: Image, located: Located) -> Mapping[int, KnownTargets]:
    """What every key of a linked image may lead to, by the key's address."""
    search = _Search(image, located)
    search.initial()
    if image.kernel:
        search.updates()
        search.tracepoints()
        search.hooks()
        search.pairs()
    else:
        search.changes()
    return {
        address: KnownTargets(dict(sorted(search.found[address].items())), address in search.open)
        for address in located.keys
    }


class _Search:
    """What is found, by key; the first source of a function counts."""

    def __init__(self, image: Image, located: Located) -> None:
        self.image = image
        self.keys = located.keys
        self.located = located
        self.found: dict[int, dict[int, TargetSource]] = defaultdict(dict)
        self.open: set[int] = set()
        self._pointers = Pointers(image)
        self._symbols = {symbol.name: symbol.address for symbol in image.symbols.matching(_STEMS)}
        self._code = [(s.address, s.address + s.size) for s in image.sections if s.executable]
        self._calls: dict[int, list[Call]] = {}
        self._branches: dict[int, list[int]] = {}
        self._kins: dict[int, list[int]] = {}
        self._nameless: set[int] = set()

    def add(self, key: int, functions: Iterable[int], source: TargetSource) -> None:
        """Note functions of a key; what is none is left out."""
        if key in self.keys:
            for function in functions:
                if self.is_code(function):
                    self.found[key].setdefault(function, source)

    def is_code(self, address: int) -> bool:
        return any(start <= address < stop for start, stop in self._code)

    def initial(self) -> None:
        """What the file says, and the function that returns 0, to which any key may lead."""
        for address, key in self.keys.items():
            if self.located.kind_of(key) is TargetKind.FUNCTION:
                self.add(address, [key.slot.value], TargetSource.INITIAL)
            if self.located.dialect.return0 is not None:
                self.add(address, [self.located.dialect.return0], TargetSource.RET0)

    # Calls

    def updates(self) -> None:
        """What the code passes to the update of a key, directly or by a wrapper."""
        callees = {self._symbols[name] for name in (_UPDATE,) if name in self._symbols}
        if not callees:
            self.open.update(self.keys)
            return
        wrappers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for call in self._calls_of(callees):
            self._update(call, wrappers)
        for call in self._calls_of(wrappers.keys()):
            for key, argument in wrappers[call.destination]:
                self._values(key, call.arguments[argument])

    def _update(self, call: Call, wrappers: dict[int, list[tuple[int, int]]]) -> None:
        keys = constants(call.arguments[_KEY]) & self.keys.keys()
        if not keys:
            self._nameless |= constants(call.arguments[_FUNCTION])
        for key in keys:
            values = call.arguments[_FUNCTION]
            for value in values:
                if value.kind is Kind.ARGUMENT and value.number < len(call.arguments):
                    wrappers[call.start].append((key, value.number))
            self._values(key, frozenset(value for value in values if value.kind is not Kind.ARGUMENT))

    def _values(self, key: int, values: Values) -> None:
        self.add(key, constants(values), TargetSource.UPDATE)
        for value in values:
            if value.kind is not Kind.CONSTANT:
                self.open.add(key)
                self.add(key, self._kept(value), TargetSource.DATA)

    def _calls_of(self, callees: Iterable[int]) -> list[Call]:
        """Every call of some functions, with its arguments, as far as functions have symbols."""
        callees = set(callees)
        calls: list[Call] = []
        for address in self._branches_to(callees):
            function = self.image.symbols.containing(address)
            if function is None or function.size > _LONGEST_FUNCTION:
                continue
            if function.address not in self._calls:
                code = self.image.read_at(function.address, function.size)
                self._calls[function.address] = list(follow(code, function.address))
            calls += (call for call in self._calls[function.address] if call.address == address)
        return [call for call in calls if call.destination in callees]

    def _branches_to(self, callees: set[int]) -> list[int]:
        """Where they may be called from; those that are asked for by name are searched for together."""
        if missing := callees - self._branches.keys():
            wanted = missing | {self._symbols[name] for name in (_UPDATE, *_REGISTER) if name in self._symbols}
            wanted -= self._branches.keys()
            self._branches |= {target: [] for target in wanted}
            for address, target in branches_to(self.image, wanted):
                self._branches[target].append(address)
        return sorted(address for callee in callees for address in self._branches[callee])

    # Variables

    def _kept(self, value: Value) -> set[int]:
        """Functions that may be in a variable: there in the file, stored by the code, or in others of its kind."""
        slot, offset = value.number, 0
        if value.kind is Kind.FIELD:
            slot, offset = self._pointers.at(value.number), value.offset
        if value.kind not in (Kind.FIELD, Kind.LOADED) or not slot:
            return set()
        kept = {self._pointers.at(slot + offset)} | self.stored.get(slot + offset, frozenset())
        variable = self.image.symbols.containing(slot, elf64.STT_OBJECT)
        if variable is not None and variable.size >= _SMALLEST_TABLE:
            place = slot + offset - variable.address
            for other in self._kin(variable):
                kept |= {self._pointers.at(other + place)} | self.stored.get(other + place, frozenset())
        return kept

    @cached_property
    def stored(self) -> Mapping[int, frozenset[int]]:
        """Which functions the code stores in which variables."""
        return stores(self.image, self.is_code)

    def _kin(self, variable: Symbol) -> list[int]:
        """Addresses of the variables that are of the same type as far as one can see.

        They are as large, and have some function in the same place as one of those that are known already.
        """
        if variable.address in self._kins:
            return self._kins[variable.address]
        step = range(0, variable.size - _WORD + 1, _WORD)
        fields: dict[int, set[tuple[int, int]]] = {}
        for address in {symbol.address for symbol in self.image.symbols.sized(variable.size)} | {variable.address}:
            own = {(place, self._pointers.at(address + place)) for place in step}
            own |= {(place, function) for place in step for function in self.stored.get(address + place, ())}
            fields[address] = {(place, function) for place, function in own if self.is_code(function)}
        kin, known = [variable.address], fields.pop(variable.address)
        while near := [address for address, own in fields.items() if own & known]:
            kin += near
            known = known.union(*(fields.pop(address) for address in near))
        self._kins[variable.address] = kin
        return kin

    # Tables

    def tracepoints(self) -> None:
        """The probes of the tracepoints; others may register more."""
        prefix = len(_TRACE_KEY)
        keys = {key.name[prefix:]: address for address, key in self.keys.items() if key.name.startswith(_TRACE_KEY)}
        self.open.update(keys.values())
        points = {
            self._symbols[_TRACEPOINT + name]: address
            for name, address in keys.items()
            if _TRACEPOINT + name in self._symbols
        }
        for name, address in keys.items():
            own = (_ITERATOR + name, _STUBS + name, _STUB)
            self.add(address, (self._symbols[one] for one in own if one in self._symbols), TargetSource.PROBE)
        candidates: dict[int, set[int]] = defaultdict(set)
        for slot, point in self._pointers.to(points.keys()):
            group = self._pointers.at(slot - _WORD)
            candidates[points[point]] |= {self._pointers.at(slot + _WORD)}
            candidates[points[point]] |= {self._pointers.at(group + _WORD), self._pointers.at(group + 2 * _WORD)}
        names = self.image.symbols.names_at(set().union(*candidates.values()))
        for key, functions in candidates.items():
            probes = (function for function in functions if names.get(function, "").startswith(_PROBES))
            self.add(key, probes, TargetSource.PROBE)
        for call in self._calls_of({self._symbols[name] for name in _REGISTER if name in self._symbols}):
            for point in constants(call.arguments[_KEY]):
                if point in points:
                    self.add(points[point], constants(call.arguments[_PROBE]), TargetSource.PROBE)

    def hooks(self) -> None:
        """The functions of the security modules; each hook has a static call for every module there may be."""
        groups: dict[str, list[int]] = defaultdict(list)
        for address, key in self.keys.items():
            if key.name.startswith(_HOOK_KEY):
                groups[key.name.rpartition("_")[0]].append(address)
        if not groups:
            return
        keys = {address: members for members in groups.values() for address in members}
        # Where the table of static calls names a key; the list of a module's hooks names these places.
        entries = {slot: keys[key] for slot, key in self._pointers.to(keys.keys())}
        for slot, entry in self._pointers.to(entries.keys()):
            function = self._pointers.at(slot + _WORD)
            for member in entries[entry]:
                self.add(member, [function], TargetSource.HOOK)
        self.open.update(keys)

    def pairs(self) -> None:
        """Keys that data name next to their trampolines: who holds such a pair may update them."""
        homes = {address: key.trampoline.address for address, key in self.keys.items() if key.trampoline}
        for slot, address in self._pointers.to(homes.keys()):
            if self._pointers.at(slot + _WORD) == homes[address] and not self.keys[address].name.startswith(
                (_TRACE_KEY, _HOOK_KEY)
            ):
                self.open.add(address)
                self.add(address, self._nameless, TargetSource.UPDATE)

    def changes(self) -> None:
        """User programs: a key and a function beside each other, in data or in code before a call."""
        self.open.update(self.keys)
        for slot, key in self._pointers.to(self.keys.keys()):
            self.add(key, self._functions({self._pointers.at(slot + _WORD)}), TargetSource.UPDATE)
        starts = {
            function.address: function.size
            for place in references_to(self.image, self.keys.keys())
            if (function := self.image.symbols.containing(place)) and function.size <= _LONGEST_FUNCTION
        }
        for start, size in starts.items():
            for call in follow(self.image.read_at(start, size), start):
                keys = call.near & self.keys.keys() or call.kept & self.keys.keys()
                if keys:
                    functions = self._functions(call.near)
                    kept = self._functions(set().union(*map(self._table, call.near - keys)))
                    for named in keys:
                        self.add(named, functions, TargetSource.UPDATE)
                        self.add(named, kept, TargetSource.DATA)

    def _table(self, address: int) -> set[int]:
        """The pointers in a variable that starts at an address; of one without a symbol only the first."""
        variable = self.image.symbols.containing(address, elf64.STT_OBJECT)
        size = min(variable.size, _LARGEST_TABLE) if variable and variable.address == address else _WORD
        return {self._pointers.at(address + place) for place in range(0, size, _WORD)} - {0}

    def _functions(self, addresses: Iterable[int]) -> set[int]:
        """The functions among some addresses."""
        types = (elf64.STT_FUNC, elf64.STT_GNU_IFUNC)
        symbols = self.image.symbols.at(set(addresses))
        homes = self.located.trampolines
        return {address for address, symbol in symbols.items() if symbol.type in types and address not in homes}
