"""Runs commands in forks of a process that has imported TensorFlow, and does them harm.

A program of its own, not a test: pytest's process has used TensorFlow already, and cannot fork.
It reads one JSON object per line, {"arguments": [...], "folder": path, and what of `answer` is to
happen}, and answers each with one line, {"code": exit code or -signal, "events": how often files
in the folder were touched or null, "seconds": how long it took, "rival": exit code of the rival or
null, "stderr": what both said}.

A kill comes right before the n-th time that Python opens, makes, renames or removes something in
the folder, or after a time, whatever is being done then; after five minutes in any case. A rival is
another command that is run from beginning to end right there, while the first one stands still. A
room is how large any file may grow. What is forced are constants of modules, by module and name.
Root is subject to permissions as anybody else is.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from importlib import import_module
from typing import Any

TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


def main() -> None:
    # Their imports take seconds, and there is nothing to lose in them.
    tasks = "cluster compare embed finetune impute map pseudotime run score simulate train".split()
    for name in ("h5py", "matplotlib.pyplot", "scanpy", "tensorflow", "concerto_tf.export"):
        import_module(name)
    for name in tasks:
        import_module(f"concerto_tf.tasks.{name}")
    from concerto_tf.models.batch_model import BatchModel

    BatchModel.use_xla = False  # compilation takes seconds, too
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(answer(**order)), flush=True)


def answer(
    arguments: list[str],
    folder: str,
    event: int | None = None,
    seconds: float = 300,
    rival: list[str] | None = None,
    room: int | None = None,
    forced: dict[str, dict[str, int]] | None = None,
) -> dict[str, Any]:
    reader, writer = os.pipe()
    heard, said = os.pipe()
    os.set_blocking(said, False)
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reader)
        os.dup2(said, 2)
        number = signal.SIGSTOP if rival else signal.SIGKILL
        for module, constants in (forced or {}).items():
            vars(import_module(module)).update(constants)
        run(arguments, folder, event, writer, number, room)
    os.close(writer)
    os.close(said)
    status, other = None, None
    if rival:
        status = os.waitpid(child, os.WUNTRACED)[1]
        if os.WIFSTOPPED(status):
            status, other = None, answer(rival, folder)
            os.kill(child, signal.SIGCONT)
    if not select.select([reader], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
    events = os.read(reader, 100)  # empty as soon as the child has ended
    os.close(reader)
    if status is None:
        status = os.waitpid(child, 0)[1]
    with os.fdopen(heard, "rb") as words:
        told = words.read().decode()
    return {
        "code": os.waitstatus_to_exitcode(status),
        "events": int(events) if events else None,
        "seconds": time.monotonic() - began,
        "rival": other and other["code"],
        "stderr": told + (other["stderr"] if other else ""),
    }


def run(
    arguments: list[str],
    folder: str,
    event: int | None,
    writer: int,
    number: signal.Signals,
    room: int | None,
) -> None:
    """Runs a command and ends the process."""
    from concerto_tf.cli import main

    count = 0

    def watch(name: str, given: tuple) -> None:
        nonlocal count
        if name in TOUCHES and any(folder in str(part) for part in given[:2]):
            count += 1
            if count == event:
                os.kill(os.getpid(), number)

    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    _humble()
    sys.addaudithook(watch)
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    code = main(arguments)
    os.write(writer, str(count).encode())
    sys.stderr.flush()
    os._exit(code)


def _humble() -> None:
    """Takes root's right to read and write what it is not permitted to."""
    if os.geteuid() or sys.platform != "linux":
        return
    version, override = 0x20080522, 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    header, held = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    libc.capget(header, held)
    held[0] &= ~override
    libc.capset(header, held)


if __name__ == "__main__":
    main()
