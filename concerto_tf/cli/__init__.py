"""The command `concerto`: arguments, progress, exit codes; no science.

Nothing heavy is imported before a command needs it, so that `concerto --help` is quick.

On Ctrl-C and SIGTERM, `main` says that the same command continues, and ends with exit code 130. Why
nothing else is to be done, and where each command continues, is told in `concerto_tf.jobs`.
"""

from __future__ import annotations

import _thread
import argparse
import atexit
import errno
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Sequence

from concerto_tf import _progress
from concerto_tf._threads import limit_threads
from concerto_tf.cli import given, spelling
from concerto_tf.cli.arguments import make_parser
from concerto_tf.cli.output import DONE, FAULT, INTERRUPTED, UNSUITABLE
from concerto_tf.errors import InputError, Interrupted

# What the system says where the user can mend it: no space, no right, no such place. Not every
# system knows all of them.
_NO_ROOM = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS")
_NO_PLACE = ("EACCES", "EPERM", "ENAMETOOLONG")

_TAKEN = ("ENOENT", "ENOTDIR", "EISDIR", "ENOTEMPTY", "EEXIST")

_AGAIN = "run the same command to continue"
#: How long a command may take to end by itself after Ctrl-C.
_PATIENCE_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The command line; by default that of the process.

    Returns:
        Exit code: 0 done, 2 the user can mend it, 1 a fault of ours, 130 interrupted.
    """
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    _quiet_libraries(options)
    limit_threads(options.threads)
    if arguments is None:  # A cluster that takes a machine back says so as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _end_for_sure()
    try:
        if not options.debug and _needs_tensorflow(options):
            _import_tensorflow(options.quiet)
        given.imports(options)
        given.expected(options)
        result = options.run(options)
        result, code = result if isinstance(result, tuple) else (result, DONE)
        if options.json:
            print(json.dumps(result))
        sys.stdout.flush()
        return code
    except (KeyboardInterrupt, Interrupted) as stop:
        print(f"concerto: interrupted; {str(stop) or _AGAIN}", file=sys.stderr)
        code = INTERRUPTED
        if arguments is None and isinstance(stop, Interrupted):
            atexit.register(os._exit, code)  # TensorFlow would abort over the worker that is gone
        return code
    except BrokenPipeError:  # Whoever read the output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # noqa: BLE001 - the last place where it can be said well
        code = _explain(error, options)
        if arguments is None and _of_the_system(error) is not None:
            # HDF5 crashes at the end of a process over a file that a full disk kept open.
            atexit.register(os._exit, code)
        return code


def _explain(error: Exception, options: argparse.Namespace) -> int:
    if options.debug:
        traceback.print_exc()
    if isinstance(error, InputError):
        print(f"concerto: {spelling.message(error, options)}", file=sys.stderr)
        return UNSUITABLE
    text = (str(error).splitlines() or [""])[0][:300]
    system = _of_the_system(error)
    if system is not None:
        # Of a copy that failed, the second name is the one that was written.
        names = [getattr(error, name, None) for name in ("filename2", "filename")]
        where = next(filter(None, [*names, getattr(options, "output", None)]), "")
        print(f"concerto: {where}: {system}; {_mended_by(system)}", file=sys.stderr)
        return UNSUITABLE
    if isinstance(error, MemoryError):
        print(
            f"concerto: not enough memory ({text}); close other programs, or take a larger machine",
            file=sys.stderr,
        )
        return UNSUITABLE
    package = _of_a_method(error)
    whose, to = ("ours", "us") if package is None else (f"the package {package}", "its authors")
    print(f"concerto: a fault of {whose}: {type(error).__name__}: {text}", file=sys.stderr)
    if not options.debug:
        print(
            f"concerto: run again with --debug for the details, and please report them to {to}",
            file=sys.stderr,
        )
    return FAULT


def _of_a_method(error: Exception) -> str | None:
    """The package of a method of others, if the error arose within it."""
    methods = getattr(sys.modules.get("concerto_tf.models.methods"), "METHODS", {})
    others = {cls.__module__.partition(".")[0] for cls in methods.values()} - {"concerto_tf"}
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    packages = (frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames)
    return next((package for package in packages if package in others), None)


def _of_the_system(error: Exception) -> str | None:
    """What the system says if it is something the user can mend, whichever library passes it on."""
    number = getattr(error, "errno", None) or 0
    if isinstance(error, OSError) and errno.errorcode.get(number) in _NO_ROOM + _NO_PLACE + _TAKEN:
        return os.strerror(number)
    # TensorFlow and HDF5 keep the words and lose the number.
    words = [os.strerror(getattr(errno, name)) for name in _NO_ROOM if hasattr(errno, name)]
    return next((text for text in words if text.lower() in str(error).lower()), None)


def _words(names: Iterable[str]) -> set[str]:
    """What the system says for its errors; not every system knows all of them."""
    return {os.strerror(getattr(errno, name)) for name in names if hasattr(errno, name)}


def _mended_by(system: str) -> str:
    """What to do about what the system says."""
    if system in _words(_NO_ROOM[:3]):
        return "make room or name a place that can be written"
    if system in _words(_TAKEN):
        return "it was removed or replaced meanwhile, perhaps by another process; run it again"
    return "name a place that can be written"


class _Lines(logging.Handler):
    """Messages as lines on what stderr is at the moment: a bar makes room for them above it."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self._options = options

    def emit(self, record: logging.LogRecord) -> None:
        print(spelling.line(record, self._options), file=sys.stderr)


def _quiet_libraries(options: argparse.Namespace) -> None:
    """Only what concerns the user reaches the terminal."""
    import warnings

    if not options.debug:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        warnings.filterwarnings("ignore")
        # TensorFlow warns, in several long lines, that a step is traced for another shape.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        # dask tells at length, with tracebacks, of a cluster that is lost; we say so in a line.
        logging.getLogger("distributed.client").addFilter(lambda record: False)
        # HDF5 raises again, by the dozen, while what could not be written is cleared away.
        sys.excepthook = lambda *_: None
        sys.unraisablehook = _unraisable
    log = logging.getLogger("concerto_tf")
    log.handlers = [_Lines(options)]
    # What is not shown is kept all the same, with the results (`tasks.io.provenance`).
    log.handlers[0].setLevel(logging.ERROR if options.quiet else logging.INFO)
    log.setLevel(logging.INFO)
    log.propagate = False


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Ctrl-C that came while a library cleared something away would be lost: it is raised again."""
    if what.exc_type is not None and issubclass(what.exc_type, KeyboardInterrupt):
        _thread.interrupt_main()


def _end_for_sure() -> None:
    """Ends the process some seconds after Ctrl-C or SIGTERM, if it does not by itself.

    Python hears of a signal between two steps of its own, and a library may be at one of its steps
    for a minute, or catch what Python raises. Nothing is lost by an end at any moment.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                time.sleep(_PATIENCE_SECONDS)
                print(f"concerto: interrupted; {_AGAIN}", file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def _needs_tensorflow(options: argparse.Namespace) -> bool:
    """Whether a command comes to need it, as umap does, which scanpy's neighbours need.

    Neither conversion nor a comparison does, unless paths are remote or genes are those of a model.
    """
    if options.command not in ("convert", "compare"):
        return True
    inputs = options.input if isinstance(options.input, list) else [options.input]
    like = getattr(options, "like", None)
    return like is not None or any("://" in path for path in [options.output, *inputs])


def _import_tensorflow(quiet: bool) -> None:
    """Imports TensorFlow without what it writes to stderr before it can be told not to."""
    sys.stderr.flush()
    kept = os.dup(2)
    # The log goes to where nothing is heard meanwhile.
    slow = threading.Timer(
        _progress.FIRST, os.write, (kept, b"starting: TensorFlow is being loaded\n")
    )
    slow.daemon = True
    if not quiet:
        slow.start()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            slow.cancel()
            os.dup2(kept, 2)
            if not quiet:
                slow.join()
            os.close(kept)
