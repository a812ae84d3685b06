"""The tutorials of the site and a how-to, done as a new user would: each command is copied and run in a new folder."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.examples import environment, need
from tests.support.modules import Development
from tests.support.pages import Step, steps
from tests.support.toolchain import TIMEOUT_SECONDS

Bringer = Callable[[Path], None]

_PAGES = ("tutorials/program.md", "tutorials/kernel.md", "howto/explain.md")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder; what was made there goes, since kernels are large."""
    path = tmp_path / "new"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def _follow(page: str, folder: Path, stand_ins: Mapping[str, Bringer]) -> int:
    """Do what a page says, and return how many commands that were."""
    tools = folder.parent / "tools"
    variables = {**environment(tools), "HOME": str(folder)}
    left, commands = dict(stand_ins), 0
    for step in steps(page):
        if step.stand_in:
            left.pop(step.stand_in)(folder)
        elif step.file:
            (folder / step.file).write_text(step.content, encoding="utf-8")
        else:
            _run(page, step, folder, variables)
            commands += 1
    assert not left, "what a test brings is asked for by the page"
    return commands


def _run(page: str, step: Step, folder: Path, variables: Mapping[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-c", step.command],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    where = f"docs/{page}, below line {step.line}: $ {step.command}"
    assert done.returncode == 0, f"{where}\nexit code {done.returncode}\n{done.stdout}"
    assert step.agrees(done.stdout), f"{where}\nthe page shows\n{step.shown}\nbut it printed\n{done.stdout}"


def test_the_tutorial_for_a_program_works_as_it_stands(folder: Path) -> None:
    need("cc", "cmp")
    assert _follow("tutorials/program.md", folder, {}) > 15


def test_a_site_is_explained_and_made_direct_as_the_page_says(folder: Path) -> None:
    need("cc")
    assert _follow("howto/explain.md", folder, {}) > 7


@pytest.mark.kernel
def test_the_tutorial_for_a_kernel_works_as_it_stands(development: Development, folder: Path) -> None:
    """All of it but the installation of the packages: links lead to the same files in the tests' cache."""
    need("cmp", "make", "objcopy")

    def kernel(place: Path) -> None:
        (place / "vmlinux").symlink_to(development.vmlinux)
        # The package's folder as if it were installed; its Makefile names the other package's by an absolute path.
        headers = place / "headers"
        headers.mkdir()
        for path in development.headers.iterdir():
            if path.name != "Makefile":
                (headers / path.name).symlink_to(path)
        (headers / "Makefile").write_text(f"include {development.makefile}\n", encoding="utf-8")

    assert _follow("tutorials/kernel.md", folder, {"kernel": kernel}) > 12


# ---- the reader of pages ----

_PAGE = """\
# Do it

<!-- stand-in: kernel -->
```console
$ sudo get it
```

```c title="a.c"
int a;
```

<!-- numbers vary -->
```console
$ cc \\
>     a.c
$ ./a.out | head
1 site
...
```
"""


def _steps(folder: Path, text: str) -> list[Step]:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return list(steps(str(page)))


def test_a_page_is_read_as_its_reader_does(tmp_path: Path) -> None:
    bring, write, compile_it, run = _steps(tmp_path, _PAGE)
    assert bring.stand_in == "kernel"
    assert (write.file, write.content) == ("a.c", "int a;\n")
    assert (compile_it.command, compile_it.shown) == ("cc \\\n    a.c", "")
    assert (run.command, run.shown, run.numbers_vary) == ("./a.out | head", "1 site\n...\n", True)


@pytest.mark.parametrize(
    "text",
    [
        _PAGE.replace("```console", "```bash"),
        _PAGE + "\n```\n$ make\n```\n",
        _PAGE + "\n    ```console\n    $ make\n    ```\n",
        _PAGE.replace("$ ./a.out", "./a.out").replace("$ cc \\\n>     a.c\n", ""),
        _PAGE + "\n```console\n$ make\n",
    ],
    ids=["another language", "no language", "indented", "no command", "not closed"],
)
def test_what_nobody_would_run_is_no_part_of_a_page(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"neither a file|not understood|in front of the first"):
        _steps(tmp_path, text)


def test_only_the_installation_of_packages_is_not_run() -> None:
    brought = {page: [step.stand_in for step in steps(page) if step.stand_in] for page in _PAGES}
    assert brought == {"tutorials/program.md": [], "tutorials/kernel.md": ["kernel"], "howto/explain.md": []}


_SHOWN = Step(1, command="x", shown="at first 21\n...\n  7,131 sites, 90.6 %\nends ...\n")


@pytest.mark.parametrize(
    ("output", "fits"),
    [
        ("at first 21\n  7,131 sites, 90.6 %\nends well\n", True),
        ("at first 21\na\nb\n  7,131 sites, 90.6 %\nends well\n", True),
        ("at first 22\n  7,131 sites, 90.6 %\nends well\n", False),
        ("at first 21\n  7,131 sites, 90.6 %\nends well\nand more\n", False),
        ("at first 21\n  7,132 sites, 90.6 %\nends well\n", False),
        ("at first 21\nends well\n", False),
        ("", False),
    ],
)
def test_an_output_is_held_against_what_the_page_shows(output: str, fits: bool) -> None:
    assert _SHOWN.agrees(output) is fits


@pytest.mark.parametrize(
    ("output", "fits"),
    [
        ("at first 5\n  12 sites, 3 %\nends\n", False),
        ("at first 5\n  12 sites,     3.25 %\nends well\n", True),
        ("at first five\n  12 sites, 3 %\nends well\n", False),
        ("at first 5\n  12 keys, 3 %\nends well\n", False),
    ],
)
def test_where_numbers_vary_all_else_has_to_agree(output: str, fits: bool) -> None:
    assert _SHOWN._replace(numbers_vary=True).agrees(output) is fits
