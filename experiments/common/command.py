"""What every command shares: JAX's environment, errors in one line, exit codes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lrc_jax.errors import DivergedError, InputError, file_error
from theory.show.plain import visible

if TYPE_CHECKING:  # importing it starts Hydra, which most commands do without
    from experiments.run_one.config import RunConfig

INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended
# glibc's mallopt parameters (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
#: JAX writes the entries of its compilation cache in place, so that one of several runs at a time may read half an
#: entry. It says so and compiles the program itself: no news for the reader. (pyproject.toml says the same to pytest.)
HALF_AN_ENTRY = r"Error reading persistent compilation cache entry for .* (error|ZstdError)\b"


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from its heap and to keep them when freed; False where there is no glibc.

    XLA on CPU allocates its temporaries anew at every step, and by default each is mapped and unmapped: tens of
    thousands of page faults a step. The price is that the process holds its peak memory to its end. Has to come
    before JAX allocates.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2_000_000_000), (M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)


def prepare_jax(config: RunConfig) -> None:
    """Set JAX's environment as a run's machine keys say; has to come before the first use of a device.

    One thread per run by default: sums are then done in one order, so that a run repeats bit by bit. The compilation
    cache lies in a folder per machine and jaxlib, since compiled CPU code need not run elsewhere, or where
    JAX_COMPILATION_CACHE_DIR says. On a GPU products of float32 are exact to float32 unless `matmul_precision` asks
    for less (by default they would be TF32).

    Raises:
      InputError: this machine has no such device.
    """
    if config.allocator and not keep_freed_memory():
        print("allocator: no glibc here, the setting does nothing", file=sys.stderr)
    on_cpu = config.platform == "cpu"
    os.environ.setdefault("JAX_PLATFORMS", config.platform)
    if on_cpu and "intra_op_parallelism_threads" not in os.environ.get("XLA_FLAGS", ""):
        eigen = "true" if config.threads > 1 else "false"
        flags = f"--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={config.threads}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    _configure(config.cache_dir, None if on_cpu else config.matmul_precision)
    if not on_cpu:
        import jax

        try:
            jax.devices()
        except RuntimeError as wrong:
            raise InputError(f"platform: no device of kind {config.platform} here ({one_line(str(wrong))})") from None


@functools.cache
def _configure(cache: str, matmul_precision: str | None) -> None:
    import jax
    import jaxlib

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = Path(cache) / "xla" / f"jaxlib-{jaxlib.__version__}-{_cpu_fingerprint()}"
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    warnings.filterwarnings("ignore", HALF_AN_ENTRY, UserWarning)
    jax.config.update("jax_default_matmul_precision", matmul_precision)


def _cpu_fingerprint() -> str:
    """Tells processors with different instruction sets apart."""
    import hashlib

    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        flags = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:8]


def machine_note() -> dict[str, Any]:
    """What a row says about where it was computed; never part of the measurement table."""
    import jax
    import jaxlib

    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "device": jax.devices()[0].device_kind,
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "float32",
        "platform": f"{platform.system()} {platform.machine()}",
    }


def one_line(text: str) -> str:
    """For a terminal: in one line, with nothing that steers it."""
    return visible(" ".join(text.split()))


def fail(message: str, code: int = 2) -> int:
    print(one_line(message), file=sys.stderr)
    return code


def guarded(main: Callable[[], int]) -> int:
    """Run a command; bad input becomes one line and exit code 2, Ctrl-C one line and 130."""
    try:
        return main()
    except InputError as wrong:
        return fail(str(wrong))
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return 1
    except _configuration_errors() as wrong:  # before OSError: Hydra's missing files are both
        return fail(f"configuration: {_root(wrong)}")
    except OSError as wrong:
        return fail(file_error(wrong))


def _configuration_errors() -> tuple[type[Exception], ...]:
    """Those of Hydra, where a command has loaded it."""
    if "hydra" not in sys.modules:
        return ()
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return HydraException, OmegaConfBaseException


def hydra_main(task: Callable[[], Any]) -> int:
    """Run a Hydra application inside `guarded`: a failed run is 1, Ctrl-C 130 with a word on how to go on."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through instead of Hydra's own many-line printing
    try:
        with contextlib.redirect_stderr(_Quiet(sys.stderr)):
            task()
    except DivergedError as wrong:
        return fail(f"run failed: {wrong}", 1)
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on with what is missing", INTERRUPTED)
    return 0


class _Quiet(io.TextIOBase):
    """Standard error without the line in which Hydra repeats a failed job's overrides: ours says what is wrong."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides") else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def _root(wrong: BaseException) -> str:
    """The first line that says what is wrong, from the innermost cause that says more than its wrapper."""
    texts = []
    cause: BaseException | None = wrong
    while cause is not None:
        text = str(cause)
        for aside in ("Config search path", "To append to your config"):
            text = text.partition(aside)[0]
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        texts.append(" ".join(lines[:15]))
        cause = cause.__cause__
    return max(texts, key=len)


def help_of(doc: str | None) -> str:
    """A command's help: its module's text, with the command spelled as it was called."""
    text = (doc or "").strip()
    return text.replace("python -m experiments.", "lrc ") if sys.argv[0].startswith("lrc ") else text


def study_arguments(doc: str | None, *, others: list[str] | None = None, **extra: Any) -> dict[str, Any]:
    """Arguments of the commands that work on a study: key=value, as everywhere in this suite.

    Args:
      others: takes the words with other keys, which are refused otherwise.
      extra: further keys with their defaults, whose type is kept.

    Raises:
      InputError: an unknown key, or no study.
    """
    # cache_dir is a key of the runs: who adds it to a command line as it stands is not refused.
    known: dict[str, Any] = {"study": None, "results_dir": "results", "cache_dir": ".cache"} | extra
    if any(a in ("-h", "--help") for a in sys.argv[1:]):
        print(help_of(doc))
        raise SystemExit(0)
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if others is not None and key not in known:
            others.append(argument)
            continue
        if not equals or key not in known:
            raise InputError(f"{argument}: unknown argument; known: {', '.join(f'{k}=' for k in known)}")
        default = known[key]
        if isinstance(default, bool):
            if value.lower() not in ("true", "false"):
                raise InputError(f"{key}: {value!r} is neither true nor false")
            known[key] = value.lower() == "true"
        else:
            known[key] = value
    if not known["study"]:
        raise InputError("study: missing; give study=NAME, a folder under results/")
    return known
