"""Runs commands in forks of a process that has imported TensorFlow, and kills or stops them.

A program of its own, not a test: pytest's process has used TensorFlow already, and cannot fork.
It reads one JSON object per line, {"arguments": [...], "folder": path, "event": n or null,
"seconds": x or null, "rival": arguments or null}, and answers each with one line, {"code": exit
code or -signal, "events": how often files in the folder were touched or null, "seconds": how long
it took, "rival": exit code of the rival or null, "stderr": what both said}.

A kill comes right before the n-th time that Python opens, makes, renames or removes something in
the folder, or after a time, whatever is being done then. A rival is another command that is run
from beginning to end right there, while the first one stands still.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
import time
from typing import Any

TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


def main() -> None:
    # Their imports take seconds, and there is nothing to lose in them.
    import h5py  # noqa: F401
    import scanpy  # noqa: F401
    import tensorflow as tf  # noqa: F401

    from concerto_tf.export import export  # noqa: F401
    from concerto_tf.models.batch_model import BatchModel
    from concerto_tf.tasks import embed, train  # noqa: F401

    BatchModel.use_xla = False  # compilation takes seconds, too
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(answer(**order)), flush=True)


def answer(
    arguments: list[str],
    folder: str,
    event: int | None,
    seconds: float | None,
    rival: list[str] | None = None,
) -> dict[str, Any]:
    reader, writer = os.pipe()
    said = tempfile.TemporaryFile()
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reader)
        os.dup2(said.fileno(), 2)
        run(arguments, folder, event, writer, signal.SIGSTOP if rival else signal.SIGKILL)
    os.close(writer)
    status, other = None, None
    if rival:
        status = os.waitpid(child, os.WUNTRACED)[1]
        if os.WIFSTOPPED(status):
            status, other = None, answer(rival, folder, None, None)
            os.kill(child, signal.SIGCONT)
    if seconds is not None and not select.select([reader], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
    events = os.read(reader, 100)  # empty as soon as the child has ended
    os.close(reader)
    if status is None:
        status = os.waitpid(child, 0)[1]
    said.seek(0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "events": int(events) if events else None,
        "seconds": time.monotonic() - began,
        "rival": other and other["code"],
        "stderr": said.read().decode() + (other["stderr"] if other else ""),
    }


def run(
    arguments: list[str], folder: str, event: int | None, writer: int, number: signal.Signals
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
    sys.addaudithook(watch)
    code = main(arguments)
    os.write(writer, str(count).encode())
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
