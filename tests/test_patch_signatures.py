"""Signatures and build ids after a patch: what a user's command may do to a file, and which notes become others."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from staticcall.errors import OutputError
from staticcall.write.sign import sign
from tests.support import modules, small_kernels
from tests.support.object_mutations import signed
from tests.support.objects import Objects
from tests.support.signers import command
from tests.support.tool import digest, names_in, refused, staticcall, succeed, validate

WISH = ("--set", "one=target")
BOUND = ("--bind", "--policy=kernel")
MARK = b"~Module signature appended~\n"


@pytest.fixture
def module(made: Objects, tmp_path: Path) -> Path:
    """An object with two keys, alone in a folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    return Path(shutil.copy(made("two_keys"), folder / "module.ko"))


def sign_with(folder: Path, way: str) -> tuple[str, str]:
    return "--sign-with", command(folder.parent, way)


def assert_nothing_new(outcome: tuple[int, str, str], code: int, says: str, folder: Path) -> None:
    assert outcome[0] == code, outcome
    assert outcome[2].count("\n") == 1
    assert says in outcome[2]
    assert names_in(folder) == {"module.ko"}


# ---- signatures of modules ----


@pytest.mark.parametrize("was", ["signed", "unsigned"])
def test_a_module_is_signed_behind_its_end(was: str, module: Path) -> None:
    out, edits, unsigned = (module.with_name(name) for name in ("out", "edits", "unsigned"))
    succeed("patch", module, *WISH, "-o", unsigned)
    if was == "signed":
        module.write_bytes(signed(module.read_bytes()))
    succeed("patch", module, *WISH, *sign_with(module.parent, "module"), "-o", out, "--edits", edits)
    data = out.read_bytes()
    assert modules.unsigned(data) == unsigned.read_bytes()
    assert data.endswith(struct.pack(">I", 304) + MARK)
    validate(json.loads(edits.read_text()), "edits")
    assert "its signature is a new one" in succeed("verify", module, out)
    back = module.with_name("back")
    succeed("revert", out, "--edits", edits, "-o", back)
    assert digest(back) == digest(module)


def test_a_signature_is_neither_kept_nor_dropped_unasked(module: Path) -> None:
    module.write_bytes(signed(module.read_bytes()))
    before = digest(module)
    refused("patch", module, *WISH, "--in-place", code="module-signature")
    assert digest(module) == before


def test_to_drop_and_to_make_a_signature_are_two_things(module: Path) -> None:
    outcome = staticcall("patch", module, *WISH, "--strip-signature", "--sign-with", "true", "-o", module.parent / "o")
    assert_nothing_new(outcome, 2, "give one of --strip-signature and --sign-with", module.parent)


def test_only_modules_and_boot_images_are_signed(program: Path) -> None:
    outcome = staticcall("patch", program, "--bind", "--sign-with", "true", "--in-place")
    assert outcome.code == 2
    assert "only a module or a bzImage can be signed" in outcome.err


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("another kind", "has a signature that is no PKCS#7"),
        ("a size too large", "a signature larger than the file"),
        ("a size too small", "was changed otherwise"),
        ("no der", "has a signature whose size is not what it says"),
        ("nothing in it", "has a signature whose size is not what it says"),
        ("one byte more", "was changed otherwise"),
        ("one byte flipped", "was changed otherwise"),
        ("a signature before the signature", "was changed otherwise"),
        ("cut", "is not signed after the signing command"),
        ("nothing left", "is not signed after the signing command"),
    ],
)
def test_a_command_that_does_anything_else_is_found(way: str, says: str, module: Path) -> None:
    out = module.with_name("out")
    outcome = staticcall("patch", module, *WISH, *sign_with(module.parent, way), "-o", out)
    assert_nothing_new(outcome, 5, says, module.parent)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("false", 3, "the signing command failed (exit code 1), nothing was published"),
        ("sh -c 'echo first >&2; echo second >&2; exit 7'", 3, "failed (exit code 7): first, nothing was published"),
        ("sh -c 'kill -9 $$'", 3, "the signing command failed (signal 9)"),
        ("/no/such/program --key x", 3, "the signing command /no/such/program cannot be run: No such file"),
        ("true", 3, "the signing command did not change the file"),
        ("""sh -c 'rm "$0"'""", 3, "the signing command left no file"),
        ("""sh -c 'rm "$0"; mkfifo "$0"'""", 3, "the signing command left no regular file"),
        ("""sh -c 'rm "$0"; mkdir "$0"'""", 3, "the signing command left no file: Is a directory"),
        ("""sh -c 'ln -sf /dev/zero "$0"'""", 3, "the signing command left no file: Too many levels of symbolic links"),
        ("""sh -c 'truncate -s 1T "$0"'""", 3, "the signing command left a file of more than"),
        ("'unclosed", 2, "--sign-with is no command: no closing quotation"),
        ("", 2, "--sign-with is no command"),
    ],
)
def test_a_command_that_does_not_sign_ends_the_run(words: str, code: int, says: str, module: Path) -> None:
    outcome = staticcall("patch", module, *WISH, "--sign-with", words, "-o", module.with_name("out"))
    assert_nothing_new(outcome, code, says, module.parent)


def test_what_a_command_says_takes_no_room_on_the_disk() -> None:
    words = 'head -c 20000000 /dev/zero >&2; [ $(du -sk "${0%/*}" | cut -f1) -lt 1000 ] && printf signed >>"$0"'
    assert sign(("sh", "-c", words), b"module ", "module.ko") == b"module signed"


def test_what_a_command_leaves_running_is_not_waited_for() -> None:
    assert sign(("sh", "-c", 'sleep 4 & printf signed >>"$0"'), b"module ", "module.ko", seconds=2) == b"module signed"


def test_a_command_that_does_not_end_is_ended() -> None:
    with pytest.raises(OutputError, match=r"did not end within 0\.05 seconds"):
        sign(("sh", "-c", "exec sleep 1000"), b"module", "module.ko", seconds=0.05)


def test_nothing_is_left_where_the_run_is_ended_meanwhile(module: Path, tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    words = "sh -c 'kill -TERM $PPID; exec sleep 1000'"
    run: list[str | Path] = [sys.executable, "-m", "staticcall", "patch", module, *WISH]
    run += ["--sign-with", words, "-o", module.with_name("out")]
    done = subprocess.run(run, env={**os.environ, "TMPDIR": str(room)}, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGTERM
    assert names_in(room) == set()
    assert names_in(module.parent) == {"module.ko"}


def test_no_shell_reads_the_command(module: Path) -> None:
    outcome = staticcall("patch", module, *WISH, "--sign-with", "echo $(touch it); true", "-o", module.with_name("out"))
    assert_nothing_new(outcome, 3, "did not change the file", module.parent)


def test_the_path_stands_where_the_braces_are(module: Path, tmp_path: Path) -> None:
    script = tmp_path / "signer.sh"
    script.write_text(f'[ "$1" = --in ] && [ "$3" = --out ] && [ "$2" = "$4" ] && {command(tmp_path, "module")} "$2"\n')
    succeed("patch", module, *WISH, "--sign-with", f"sh {script} --in {{}} --out {{}}", "-o", module.with_name("out"))
    assert module.with_name("out").read_bytes().endswith(MARK)


def test_nothing_is_signed_where_nothing_is_written(module: Path) -> None:
    succeed("patch", module, *WISH, "--sign-with", "false", "--dry-run")


def test_a_stale_signature_fails_the_proof(module: Path) -> None:
    out = module.with_name("out")
    succeed("patch", module, *WISH, "-o", out)
    module.write_bytes(signed(module.read_bytes()))
    out.write_bytes(signed(out.read_bytes()))
    outcome = staticcall("verify", module, out)
    assert outcome.code == 5
    assert "signature" in outcome.err


# ---- build ids ----


def build_id(path: Path) -> str:
    notes = subprocess.run(["readelf", "-nW", path], capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"Build ID: ([0-9a-f]+)", notes)
    return str(found)


@pytest.fixture(params=["kernel", "module", "program"])
def identified(request: pytest.FixtureRequest, made: Objects, tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A file with a build id, and a wish for it."""
    if request.param == "kernel":
        return small_kernels.build(tmp_path, "6.12.0", linking=("--build-id=sha1",)), BOUND
    if request.param == "program":
        program = request.getfixturevalue("program")
        return program, ("--set", "alpha=alpha_fast")
    path = tmp_path / "module.ko"
    subprocess.run(["ld", "-r", "--build-id=sha1", "-o", path, made("two_keys")], check=True)
    return path, WISH


def test_a_build_id_is_kept_unless_asked_for(identified: tuple[Path, tuple[str, ...]]) -> None:
    path, wish = identified
    out = path.with_name("out")
    succeed("patch", path, *wish, "-o", out)
    assert build_id(out) == build_id(path)


def test_a_build_id_is_made_of_the_new_content(identified: tuple[Path, tuple[str, ...]]) -> None:
    path, wish = identified
    out, edits, kept = (path.with_name(name) for name in ("out", "edits", "kept"))
    said = succeed("patch", path, *wish, "--build-id", "recompute", "-o", out, "--edits", edits)
    succeed("patch", path, *wish, "-o", kept)
    old, new = build_id(path), build_id(out)
    assert f"the build id was {old} and is {new}" in said
    zeroed = out.read_bytes().replace(bytes.fromhex(new), bytes(20))
    assert new == hashlib.sha1(zeroed, usedforsecurity=False).hexdigest()
    # That is all that is different.
    assert out.read_bytes().replace(bytes.fromhex(new), bytes.fromhex(old)) == kept.read_bytes()
    kinds = [edit["kind"] for edit in json.loads(edits.read_text())["edits"]]
    assert kinds.count("build-id") == 1
    validate(json.loads(edits.read_text()), "edits")
    assert f"the build id was {old} and is {new}" in succeed("verify", path, out)
    succeed("revert", out, "--edits", edits, "--in-place")
    assert digest(out) == digest(path)


def test_a_seed_gives_another_id_and_the_same_again(identified: tuple[Path, tuple[str, ...]]) -> None:
    path, wish = identified
    ids = []
    for number, seed in enumerate(("one", "one", "two")):
        out = path.with_name(f"out{number}")
        succeed("patch", path, *wish, "--build-id", f"seed:{seed}", "-o", out)
        ids.append(build_id(out))
    old = bytes.fromhex(build_id(path))
    assert ids[0] == ids[1] == hashlib.sha1(old + b"one", usedforsecurity=False).hexdigest()
    assert len({*ids, old.hex()}) == 3


def test_a_dry_run_tells_the_new_build_id(identified: tuple[Path, tuple[str, ...]]) -> None:
    path, wish = identified
    said = succeed("patch", path, *wish, "--build-id", "seed:x", "--dry-run")
    succeed("patch", path, *wish, "--build-id", "seed:x", "-o", path.with_name("out"))
    assert f"the build id is {build_id(path)} and becomes {build_id(path.with_name('out'))}" in said


@pytest.mark.parametrize("at", [-1, -5, -16], ids=["name", "type", "size"])
def test_nothing_else_of_the_note_may_differ(at: int, identified: tuple[Path, tuple[str, ...]]) -> None:
    path, wish = identified
    out = path.with_name("out")
    succeed("patch", path, *wish, "--build-id", "seed:x", "-o", out)
    data = bytearray(out.read_bytes())
    data[data.index(bytes.fromhex(build_id(out))) + at] ^= 1
    out.write_bytes(data)
    outcome = staticcall("verify", path, out)
    assert outcome.code == 5, outcome
    assert outcome.err.count("\n") == 1


def test_a_file_without_a_build_id_gets_none(module: Path) -> None:
    line = refused("patch", module, *WISH, "--build-id", "recompute", "-o", module.with_name("out"), code="build-id")
    assert "has no build id in a section of notes" in line
    assert names_in(module.parent) == {"module.ko"}


def test_a_long_build_id_is_left_alone(tmp_path: Path) -> None:
    kernel = small_kernels.build(tmp_path, "6.12.0", linking=(f"--build-id=0x{'ab' * 32}",))
    line = refused("patch", kernel, *BOUND, "--build-id", "recompute", "-o", tmp_path / "out", code="build-id")
    assert "has a build id of 32 bytes" in line


def test_a_short_build_id_keeps_its_size(tmp_path: Path) -> None:
    kernel = small_kernels.build(tmp_path, "6.12.0", linking=("--build-id=0x1234567890abcdef",))
    succeed("patch", kernel, *BOUND, "--build-id", "recompute", "-o", tmp_path / "out")
    assert len(build_id(tmp_path / "out")) == 16
    assert build_id(tmp_path / "out") != "1234567890abcdef"


@pytest.mark.parametrize("text", ["", "seed:", "new", "SEED:x"])
def test_other_words_for_build_ids_are_unknown(text: str, module: Path) -> None:
    outcome = staticcall("patch", module, *WISH, "--build-id", text, "-o", module.with_name("out"))
    assert_nothing_new(outcome, 2, "give keep, recompute or seed:TEXT", module.parent)
