"""The same work on many machines: a scheduler of Dask and its workers read the files of a tree.

Workers are processes elsewhere that see the same files under the same paths and have the same version of this tool,
which is asked before. What a worker has begun when it dies is begun again by another one; files are only read, so
that this does no harm.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final

from staticcall import __version__
from staticcall.errors import InputError, StaticcallError, UsageError
from staticcall.model.tree import Input
from staticcall.pipeline.look import Look

# Its methods have no types.
Client = Any

# To reach the scheduler, and for it to have a worker.
_PATIENCE_SECONDS: Final = 5
# How long a task may go without anybody there to do it; asked again every so many seconds.
_LOST_SECONDS: Final = 30
_ASK_SECONDS: Final = 2.0


@contextmanager
def fleet(
    address: str, trees: Sequence[str], parts: Sequence[Sequence[Input]], look: Look
) -> Iterator[tuple[Executor, list[tuple[Input, ...]], Look]]:
    """The workers of the scheduler at an address, as an executor, and the work with paths that are good for them.

    Raises `UsageError` where Dask is not installed or a worker has another version of this tool, `InputError` where
    the scheduler cannot be reached or has no workers, or a worker does not see the trees.
    """
    client = _connected(address)
    try:
        _check(client, address, [str(Path(tree).absolute()) for tree in trees])
        yield _Fleet(client, address), [tuple(map(_absolute, part)) for part in parts], _absolute_look(look)
    finally:
        client.close(timeout=_PATIENCE_SECONDS)


def _connected(address: str) -> Client:
    try:
        import distributed  # noqa: PLC0415 - takes a second
        from distributed.comm.addressing import parse_address  # noqa: PLC0415 - as above
        from distributed.comm.registry import get_backend  # noqa: PLC0415 - as above
    except ImportError as error:
        raise UsageError(
            "--dask needs Dask, which is not installed", advice="pip install 'staticcall[dask]'"
        ) from error
    import logging  # noqa: PLC0415 - as above
    from warnings import catch_warnings, simplefilter  # noqa: PLC0415 - as above

    try:
        # A client for what is no address would hang in its own end.
        scheme, place = parse_address(address)
        backend: Any = get_backend(scheme)
        backend.get_address_host(place)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--dask {address} is no address: {error}", advice="give HOST:PORT") from error
    # What goes wrong is said here, in one line.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        with catch_warnings():
            simplefilter("ignore")  # of versions of libraries: what matters is asked
            connect: Any = distributed.Client
            return connect(address, timeout=_PATIENCE_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        # ValueError and others: of addresses that are none.
        words = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"the scheduler at {address} cannot be reached: {words[0]}", advice="check the address"
        ) from error


def _check(client: Client, address: str, trees: Sequence[str]) -> None:
    try:
        client.wait_for_workers(1, timeout=_PATIENCE_SECONDS)
    except TimeoutError as error:
        raise InputError(
            f"the scheduler at {address} has no workers", advice="start some with `dask worker`"
        ) from error
    answers = client.run(_look_around, list(trees), on_error="return")
    for worker, answer in sorted(answers.items()):
        if isinstance(answer, BaseException):
            words = str(answer).splitlines() or [type(answer).__name__]
            raise UsageError(f"worker {worker} cannot run staticcall: {words[0]}", advice="install it there")
        version, missing = answer
        if version != __version__:
            raise UsageError(
                f"worker {worker} has staticcall {version}, and this is {__version__}", advice="install the same there"
            )
        if missing:
            raise InputError(f"worker {worker} does not see it", path=missing[0], advice="let it be mounted there")


def _look_around(trees: Sequence[str]) -> tuple[str, list[str]]:
    """On a worker: the version of this tool, and which of the trees it does not see."""
    return __version__, [tree for tree in trees if not Path(tree).exists()]


def _absolute(one: Input) -> Input:
    return one._replace(path=str(Path(one.path).absolute()))


def _absolute_look(look: Look) -> Look:
    names, *others = look.aids
    names = type(names)(*(path and path.absolute() for path in names))
    return look._replace(aids=type(look.aids)(names, *(path and path.absolute() for path in others)))


class _Fleet(Executor):
    """Dask's executor, which does not wait for ever: a task without anybody to do it fails."""

    def __init__(self, client: Client, address: str) -> None:
        self._client = client
        self._address = address
        # What a worker had begun when it died, another one begins again.
        self._inner = client.get_executor(pure=False)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **others: Any) -> Future[Any]:
        """Have it done by a worker."""
        return _Task(self._inner.submit(function, *arguments, **others), self._client, self._address)


class _Task(Future[Any]):
    """One task, whose `result` raises `InputError` where no worker is left to do it, or it kills every worker."""

    def __init__(self, inner: Future[Any], client: Client, address: str) -> None:
        super().__init__()
        self._inner = inner
        self._client = client
        self._address = address

    def cancel(self) -> bool:
        """Have it not done, unless that has begun."""
        return self._inner.cancel()

    def result(self, timeout: float | None = None) -> Any:
        """What came of it."""
        last = None if timeout is None else monotonic() + timeout
        alone_since: float | None = None
        while True:
            wait = _ASK_SECONDS if last is None else min(_ASK_SECONDS, max(last - monotonic(), 0))
            try:
                return self._inner.result(wait)
            except TimeoutError:
                now = monotonic()
                if last is not None and now >= last:
                    raise
                alone_since = None if self._has_workers() else alone_since or now
                if alone_since is not None and now - alone_since > _LOST_SECONDS:
                    raise InputError(f"the scheduler at {self._address} has no workers any more") from None
            except StaticcallError:
                raise
            except (Exception, CancelledError) as error:
                words = str(error).splitlines() or [type(error).__name__]
                raise InputError(f"the workers of {self._address} gave up: {words[0]}", advice="run again") from error

    def _has_workers(self) -> bool:
        try:
            return bool(self._client.scheduler_info()["workers"])
        except (OSError, RuntimeError, KeyError):
            return False
