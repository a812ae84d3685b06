"""A module that is rewritten inside of its .ko.xz and signed anew is one that a kernel which insists on that takes.

Debian's kernel has one certificate built in, that of the key with which its build signed the modules. In a copy of the
vmlinux the test's own certificate stands there instead. Both kernels run with module.sig_enforce=1, get the published
files as they are, unpack them themselves, and are asked what they make of them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from staticcall.cli.commands import COMMANDS
from staticcall.cli.main import command_named
from staticcall.cli.man import examples
from tests.support import booting, guest, modules, playground, vmlinux
from tests.support.elf_edit import Elf
from tests.support.modules import ARGUMENT, Development, Life, Loading, Workshop
from tests.support.tool import digest, refused, staticcall, succeed

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

ENFORCED: Final = "module.sig_enforce=1"
# It has keys of its own and needs no other module.
NAME: Final = "sunrpc"
WISH: Final = ("--bind", "--policy=kernel")
# As kbuild compresses modules.
XZ: Final = ("xz", "--check=crc32", "--lzma2=dict=1MiB", "--stdout")
_LOADER_SOURCE = Path(__file__).parents[1] / "fixtures" / "guest" / "load_module.c"
_SIZE = struct.Struct("<Q")
_NO_EXTENSIONS = "[req]\ndistinguished_name = name\n[name]\n"


class Signer(NamedTuple):
    """A key of the test's: how to sign a module with it, and its certificate as a kernel has it built in."""

    command: str
    certificate: bytes


@pytest.fixture(scope="module")
def signer(development: Development, tmp_path_factory: pytest.TempPathFactory) -> Signer:
    folder = tmp_path_factory.mktemp("signer")
    key, pem, der = (folder / name for name in ("key.pem", "certificate.pem", "certificate.der"))
    (folder / "openssl.cnf").write_text(_NO_EXTENSIONS)
    # The same kind of key as the kernel's own: its code is there before any module.
    made = ["-new", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-sha256"]
    named: list[str | Path] = ["-days", "36500", "-subj", "/CN=static calls", "-config", folder / "openssl.cnf"]
    subprocess.run(["openssl", "req", *made, *named, "-keyout", key, "-out", pem], capture_output=True, check=True)
    subprocess.run(["openssl", "x509", "-in", pem, "-outform", "der", "-out", der], check=True)
    program = development.headers / "scripts" / "sign-file"
    return Signer(shlex.join(map(str, [program, "sha256", key, pem])), der.read_bytes())


@pytest.fixture(scope="module")
def trusting(
    development: Development, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Development]:
    """The kernel with the test's certificate in the place of Debian's."""
    image = vmlinux.read(development.vmlinux)
    start, end = image.address("system_certificate_list"), image.address("__cert_list_end")
    certificate = signer.certificate
    assert len(certificate) <= end - start, "the certificate that is built in is a small one"
    size = _SIZE.pack(len(certificate))
    changes = {
        start: certificate.ljust(end - start, b"\0"),
        image.address("system_certificate_list_size"): size,
        image.address("module_cert_size"): size,
    }
    with booting.changed_by_hand(image, tmp_path_factory.mktemp("trusting"), changes) as path:
        yield development._replace(vmlinux=path)


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("loader") / "load_module"
    subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, _LOADER_SOURCE], check=True)
    return program


# Debian's module

Packed = Mapping[str, Path]


@pytest.fixture(scope="module")
def packed(development: Development, signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """The module by what was done to it, each as .ko.xz."""
    folder = tmp_path_factory.mktemp("packed")
    (original,) = development.modules.rglob(f"{NAME}.ko.xz")
    paths = {name: folder / f"{name}.ko.xz" for name in ("unsigned", "signed", "damaged")}
    succeed("patch", original, *WISH, "--strip-signature", "-o", paths["unsigned"])
    edits = folder / "edits.json"
    succeed("patch", original, *WISH, "--sign-with", signer.command, "-o", paths["signed"], "--edits", edits)
    verified = succeed("verify", original, paths["signed"])
    assert "its signature is a new one" in verified
    succeed("revert", paths["signed"], "--edits", edits, "-o", folder / "back.ko.xz")
    assert digest(folder / "back.ko.xz") == digest(original)
    plain = subprocess.run(["xz", "-dc", paths["signed"]], capture_output=True, check=True).stdout
    elf = Elf(plain)
    text = elf.span(".text")
    elf.data[text.offset + text.size // 2] ^= 1
    damaged = subprocess.run(XZ, input=elf.data, capture_output=True, check=True).stdout
    paths["damaged"].write_bytes(damaged)
    return {"untouched": original, **paths}


def test_the_example_of_help_rewrites_and_signs_kvm(
    development: Development, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [line for name in COMMANDS for line in playground.commands(examples(command_named(name)))]
    (example,) = (line for line in commands if "--sign-with" in line)
    program, _, key, certificate = shlex.split(signer.command)
    (original,) = development.modules.rglob("kvm.ko.xz")
    shutil.copy(original, tmp_path / "kvm.ko.xz")
    (tmp_path / "vmlinux").symlink_to(development.vmlinux)
    for name, path in (("my.key", key), ("my.crt", certificate)):
        (tmp_path / name).symlink_to(path)
    monkeypatch.setenv("PATH", str(Path(program).parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)

    said = succeed(*shlex.split(example)[1:])

    # The key leads somewhere else than before, and its type was compared with that of the wish.
    assert "tp_func_kvm_pio: __traceiter_kvm_pio -> __static_call_return0" in said
    assert "returns an integer by BTF" in said
    before, after = (
        subprocess.run(["xz", "-dc", path], capture_output=True, check=True).stdout for path in (original, "new.ko.xz")
    )
    assert modules.unsigned(after) != after
    assert modules.unsigned(after) != modules.unsigned(before)


def _what_it_says(kernel: Development, folder: Path, loader: Path, packed: Packed) -> dict[str, str]:
    """Boot a kernel that insists on signatures, and give what it says to each module, and whether it is there then."""
    files = {f"{name}.ko.xz": path for name, path in packed.items()} | {"load_module": loader}
    load = "dmesg -c > /dev/null; /files/load_module /files/{name}.ko.xz"
    after = f"dmesg | cut -d ']' -f 2-; grep -o '^{NAME} .* Live' /proc/modules; rmmod {NAME} 2> /dev/null"
    commands = [f"{load.format(name=name)}; {after}" for name in packed]
    booted = guest.boot(kernel.vmlinux, folder, files=files, commands=commands, kernel_options=ENFORCED)
    assert booted.problems == ()
    return dict(zip(packed, booted.outputs, strict=True))


@pytest.fixture(scope="module")
def to_the_trusting(
    trusting: Development, loader: Path, packed: Packed, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    return _what_it_says(trusting, tmp_path_factory.mktemp("trusting") / "guest", loader, packed)


@pytest.fixture(scope="module")
def to_debians(
    development: Development, loader: Path, packed: Packed, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    return _what_it_says(development, tmp_path_factory.mktemp("debian") / "guest", loader, packed)


def test_a_rewritten_module_loads_where_its_signer_is_trusted(to_the_trusting: Mapping[str, str]) -> None:
    said = to_the_trusting["signed"]
    assert f"{NAME} " in said
    assert "Live" in said
    assert "refused" not in said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("untouched", "Loading of module with unavailable key is rejected"),
        ("unsigned", "Loading of unsigned module is rejected"),
        ("damaged", "refused: Key was rejected by service"),
    ],
)
def test_any_other_is_refused_there(to_the_trusting: Mapping[str, str], name: str, reason: str) -> None:
    assert reason in to_the_trusting[name]
    assert "Live" not in to_the_trusting[name]


def test_debians_kernel_takes_debians_module_and_no_other(to_debians: Mapping[str, str]) -> None:
    assert [name for name, said in to_debians.items() if "Live" in said] == ["untouched"]
    assert "Loading of module with unavailable key is rejected" in to_debians["signed"]
    assert "Loading of unsigned module is rejected" in to_debians["unsigned"]


def test_nothing_is_left_of_debians_signature_unasked(development: Development, tmp_path: Path) -> None:
    (original,) = development.modules.rglob(f"{NAME}.ko.xz")
    refused("patch", original, *WISH, "-o", tmp_path / "new.ko.xz", code="module-signature")
    assert list(tmp_path.iterdir()) == []


# A module whose calls can be asked where they go


@pytest.fixture(scope="module")
def life(
    development: Development,
    trusting: Development,
    signer: Signer,
    loader: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[guest.Boot, Life]:
    folder = tmp_path_factory.mktemp("demo")
    built = Workshop(development, folder).build("objtool")
    original, patched = folder / "demo.ko.xz", folder / "patched.ko.xz"
    original.write_bytes(subprocess.run([*XZ, built], capture_output=True, check=True).stdout)
    sets = ["--set=demo_answer=demo_answer_second", "--set=demo_spare=demo_spare_second"]
    succeed("patch", original, *sets, "--sign-with", signer.command, "-o", patched, "--build-id", "recompute")
    succeed("verify", original, patched)
    loading = Loading("/files/load_module", {"load_module": loader}, ENFORCED, {"demo": patched})
    booted, lives = modules.lives(trusting, folder / "guest", {"demo": built}, loading)
    return booted, lives["demo"]


def test_its_calls_go_where_the_rewriting_led_them(life: tuple[guest.Boot, Life]) -> None:
    booted, demo = life
    assert booted.problems == ()
    assert demo.loaded, demo.text
    assert demo.before.answers["plain"] == 100_000 + 2000 + ARGUMENT
    assert demo.before.answers["tail"] == 2000 + ARGUMENT
    assert demo.before.places["plain"].branches == {"demo_answer_second"}
    assert demo.before.places["spare"].branches == {"demo_spare_second"}


def test_its_calls_can_still_be_updated(life: tuple[guest.Boot, Life]) -> None:
    _, demo = life
    assert demo.after.answers["plain"] == 100_000 + 3000 + ARGUMENT
    assert demo.after.places["plain"].branches == {"demo_answer_third"}
    assert demo.unloaded, demo.text


def test_a_key_that_does_not_fit_its_certificate_signs_nothing(
    development: Development, signer: Signer, tmp_path: Path
) -> None:
    (original,) = development.modules.rglob(f"{NAME}.ko.xz")
    *program, key, _ = shlex.split(signer.command)
    outcome = staticcall(
        "patch", original, *WISH, "--sign-with", shlex.join([*program, key, key]), "-o", tmp_path / "new.ko.xz"
    )
    assert outcome.code == 3
    assert outcome.err.count("\n") == 1
    assert "the signing command failed (exit code 1)" in outcome.err
    assert list(tmp_path.iterdir()) == []
