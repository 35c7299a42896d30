"""Work that takes long and leaves its results in a folder: asked for, begun, resumed, finished.

What happens on Ctrl-C, on SIGTERM, when a process is killed or the power is cut? The work ends
where it is, and nothing has to be cleared away. `concerto_tf.cli.main` catches `KeyboardInterrupt`,
says "run the same command to continue" and ends with exit code 130. What bears a final name is
whole (`concerto_tf._files.atomic`), and a note of what was asked for is written before the first
result. The same call, made again, continues from the results that are there: `convert` behind its
last chunk (`concerto_tf.records.conversion.passes`), `train` and `finetune` behind their last
checkpoint (`concerto_tf.tasks.training.callbacks.Checkpoint`), `run` behind its last stage.

An `InputError` says that the call itself has to be mended. What was begun is then withdrawn, unless
a later call could continue from it.

A folder belongs to one process at a time (`concerto_tf._lock`), and to what was asked for first:
another call is told in what it differs. Inputs are compared by `concerto_tf._identity`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concerto_tf._files import is_empty, remove, remove_temporaries, sha256, write_json
from concerto_tf._identity import json_checksum
from concerto_tf._lock import FolderLock
from concerto_tf._paths import as_path
from concerto_tf.errors import Argument, InputError

_log = logging.getLogger("concerto_tf")
#: In a note: checksums of the results, and its own.
_FILES, _CHECKSUM = "files", "checksum"


@dataclass(frozen=True)
class Layout:
    """Which names in a folder belong to one sort of work.

    Attributes:
        noun: What the work leaves, for messages: "model".
        begun: File that says what was asked for while the work is unfinished.
        finished: File that says what was asked for, written last. It may be `begun` itself; then
            the work is finished once all `results` are there.
        results: What must be there, too, for the work to be finished.
        keep: What makes unfinished work worth keeping, once it is there.
        staged: Whether each stage of the work keeps a folder of its own, which knows what it is of;
            the note of the whole can then be made again where it is damaged.
        scratch: Folders that the finished work has no use for.
        products: Patterns of what else the work makes.
    """

    noun: str
    begun: str
    finished: str
    results: tuple[str, ...] = ()
    keep: str | None = None
    staged: bool = False
    scratch: tuple[str, ...] = ()
    products: tuple[str, ...] = ()


class Job:
    """One piece of work and its folder; used in a `with` statement.

    Entering it looks at the folder and changes nothing but what finished work has left over.
    Leaving it by an `InputError` withdraws what was begun, unless a later call can continue.

    Args:
        out: The folder.
        asked: What the results follow from, as JSON holds it; ``None`` if nothing can tell, so that
            no two calls are the same.
        layout: Which names in the folder belong to such work.
        overwrite: Whether finished work of another call may be replaced; ``None`` where the caller
            has no such choice.
        writes: Whether this process writes; of several that work together one does.

    Attributes:
        out: The folder.
        asked: What is asked for, as it reads when it comes back from a file.
        finished: Whether the same call has been finished here, and its results are as it left them.
        facts: What a note of this work in the folder says beside ``asked``.

    Raises:
        InputError: On entering or on `begin`: the folder holds something else, another process is
            at work in it, or it cannot be written.

    Example:
        >>> import tempfile
        >>> from concerto_tf.jobs import Job, Layout
        >>> layout = Layout("sum", begun="begun.json", finished="sum.json")
        >>> out = tempfile.mkdtemp()
        >>> with Job(out, {"numbers": [1, 2]}, layout) as job:
        ...     job.begin()
        ...     job.finish(sum=3)
        >>> with Job(out, {"numbers": [1, 2]}, layout) as job:
        ...     print(job.finished, job.facts)
        True {'sum': 3}
        >>> with Job(out, {"numbers": [1, 3]}, layout):
        ...     pass
        Traceback (most recent call last):
        ...
        concerto_tf.errors.InputError: ...: holds a sum differing in numbers; remove this one...
    """

    def __init__(
        self,
        out: str | Path,
        asked: Mapping[str, Any] | None,
        layout: Layout,
        *,
        overwrite: bool | None = None,
        writes: bool = True,
    ) -> None:
        self.out, self.layout = as_path(out), layout
        self.asked = None if asked is None else json.loads(json.dumps(asked))
        self.finished = False
        self.facts: dict[str, Any] = {}
        self._overwrite, self._writes = overwrite, writes
        self._same = self._began = self._fresh = False
        self._changed: list[str] = []
        #: Results that are not as finished work left them, where all of them are there.
        self.changed: tuple[str, ...] = ()
        self._lock = FolderLock(self.out)

    def __enter__(self) -> Job:
        self._fresh = not self.out.exists()
        self._look()
        if self.finished and self._writes and self._untidy():
            # Of a process that was killed in its last moment, or is in it.
            with suppress(OSError, InputError), FolderLock(self.out):
                self._look()
                if self.finished:
                    self.tidy()
        elif not self.finished and not self._fresh:
            self.acquire()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if self._began and isinstance(error, InputError) and not self._lock.lost:
                with suppress(OSError):  # the error tells why
                    self._withdraw()
        finally:
            self._lock.release()

    def begin(self) -> None:
        """Makes the folder and notes what is asked for; what is there of the same work stays."""
        if not self._writes:
            return
        try:
            self.acquire()
            self._sweep()
            if not self._same and (self.out / self.layout.begun).exists():
                _log.info("%s: what was begun there of something else is begun anew", self.out)
            if self.finished or not self._same:
                self._clear()
            self._set_aside()
            self._began = True
            self.note(**self.facts)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> InputError:
        why = error.strerror or str(error)
        return InputError(f"{self.out}: cannot be written ({why}); name another folder", "out")

    def note(self, **facts: Any) -> None:
        """Keeps facts about unfinished work, for `facts` of a later call."""
        self.facts = facts
        self._write(**facts)

    def _write(self, **facts: Any) -> None:
        self.check()
        path = self.out / self.layout.begun
        path.parent.mkdir(exist_ok=True)
        _write_note(path, {"asked": self.asked, **facts})

    def reopen(self) -> None:
        """Lets results of finished work be changed: they count as they are until `finish`."""
        self._sweep()
        self._write(**self.facts, **{_FILES: {}})

    def finish(self, **facts: Any) -> None:
        """Says that the work is done and what it left, and removes what only unfinished needs.

        Args:
            **facts: For `facts` of a later call.
        """
        self.check()
        paths = {name: self.out / name for name in self.layout.results}
        files = {name: sha256(path) for name, path in paths.items()}
        _write_note(self.out / self.layout.finished, {"asked": self.asked, **facts, _FILES: files})
        self.tidy()

    def tidy(self) -> None:
        """Removes what only unfinished work needs; `finish` does it, too."""
        self._began = False
        for name in self.layout.scratch:
            with suppress(FileNotFoundError):  # another worker may be at it too
                remove(self.out / name)
        if self.layout.begun != self.layout.finished:
            remove(self.out / self.layout.begun)

    @property
    def kept(self) -> bool:
        """Whether there is what a later call continues from, and no other call may remove."""
        return self.layout.keep is not None and _is_there(self.out / self.layout.keep)

    def _look(self) -> None:
        """Takes in what the folder holds; raises InputError if it is something else."""
        layout, out = self.layout, self.out
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: is a file; name a folder for the {layout.noun}", "out")
        self._same = self.finished = False
        note = found = read_note(out / layout.finished)
        lacking = self._lacking(note or {})
        whole = note is not None and not lacking
        if note is None:
            found = read_note(out / layout.begun)
        if found is None:
            if any(not self._is_left_over(entry) for entry in self._entries()):
                raise InputError(
                    f"{out}: is not empty and holds no {layout.noun}; name another folder", "out"
                )
            return
        held = found.get("asked")
        own = ("asked", _FILES, _CHECKSUM)
        self.facts = {name: fact for name, fact in found.items() if name not in own}
        if layout.staged and held is None:
            _log.warning("%s: is damaged, and made again", out / layout.begun)
            self._same = self.asked is not None
            self._changed = [name for name in layout.results if (out / name).exists()]
            return
        self._same = self.asked is not None and held == self.asked
        self.finished = whole and self._same
        if self._same:
            was_finished = note is not None and _FILES in note
            self._changed = [name for name in lacking if was_finished and (out / name).exists()]
            self.changed = tuple(lacking) if self._changed == lacking else ()
            return
        self.facts = {}
        if note == {} and not self._overwrite:
            raise InputError(
                f"{out / layout.finished}: is damaged, so that nobody can tell what the "
                f"{layout.noun} there came from; remove {out} and do it again, or name another "
                "folder",
                "out" if self._overwrite is None else Argument("overwrite", True),
            )
        whole = note is not None and not (layout.staged and lacking)
        if self.kept or (whole and not self._overwrite):
            noun = layout.noun if whole else f"unfinished {layout.noun}"
            article = "" if noun.endswith("s") else "a " if whole else "an "
            names = []
            if isinstance(held, dict) and held and self.asked:
                names = list(_differing(held, self.asked))
            listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
            what = f"differing in {listed}" if names else "of something else"
            ways = "remove this one, or name another folder", Argument("out")
            if self._overwrite is not None:
                ways = "name another folder, or overwrite this one", Argument("overwrite", True)
            raise InputError(f"{out}: holds {article}{noun} {what}; {ways[0]}", ways[1])

    def _lacking(self, note: Mapping[str, Any]) -> list[str]:
        """Names of results that are not there, or not as they were left."""
        if _CHECKSUM in note and not isinstance(note.get(_FILES), dict):
            return list(self.layout.results)  # not finished; notes of old have no checksums at all
        known = note.get(_FILES, {})
        paths = {name: self.out / name for name in self.layout.results}
        return [
            name
            for name, path in paths.items()
            if not _is_there(path)
            or (name in known and known[name] != sha256(path))
            or (name not in known and path.is_file() and not path.stat().st_size)
        ]

    def _set_aside(self) -> None:
        """Keeps what was changed or damaged under another name; it may be somebody's work."""
        for name in self._changed:
            path = self.out / name
            kept = path.with_name(f"{path.stem}.changed{path.suffix}")
            if path.stat().st_size:
                path.replace(kept)
            said = f"; what there was is kept as {kept.name}" if kept.exists() else ""
            _log.warning("%s: is not as it was left, and made again%s", path, said)
        self._changed = []

    def _entries(self) -> list[Path]:
        """What the folder shows."""
        there = self.out.iterdir() if self.out.is_dir() else ()
        return [entry for entry in there if not entry.name.startswith(".")]

    def _is_left_over(self, entry: Path) -> bool:
        """Whether a process that was killed right at its start may have left this."""
        return entry.name in self.layout.scratch and entry.is_dir() and not _is_there(entry)

    def acquire(self) -> None:
        """Keeps other processes out until this one is through, or ends in whatever way."""
        if not self._writes or self._lock.held:
            return
        try:
            self._lock.acquire()
            self._look()  # another process may have been here until now
        except OSError as error:
            raise self._unwritable(error) from error
        except BaseException:  # who fails on entering does not leave
            self._lock.release()
            raise

    def check(self) -> None:
        """Raises InputError if another process has taken this folder for abandoned meanwhile."""
        self._lock.check()

    def _untidy(self) -> bool:
        """Whether there is what only unfinished work needs."""
        layout = self.layout
        begun = [] if layout.begun == layout.finished else [layout.begun]
        return any((self.out / name).exists() for name in (*layout.scratch, *begun))

    def _sweep(self) -> None:
        """Removes what a process that was killed had half written."""
        layout = self.layout
        parts = (*layout.results, *layout.products)
        for folder in {"", *layout.scratch, *(part.rpartition("/")[0] for part in parts)}:
            if (self.out / folder).is_dir():
                remove_temporaries(self.out / folder)

    def _clear(self) -> None:
        """Removes what such work makes, and nothing else; the note that says so goes last."""
        layout = self.layout
        if layout.finished != layout.begun and (self.out / layout.finished).exists():
            (self.out / layout.begun).parent.mkdir(exist_ok=True)
            write_json(self.out / layout.begun, {})
            remove(self.out / layout.finished)
        for pattern in (*layout.results, *layout.products):
            for path in list(self.out.glob(pattern)):
                remove(path)
        self.tidy()
        self.finished = self._same = False
        self.facts = {}

    def _withdraw(self) -> None:
        """Takes back work that came to nothing, so that a mended call finds an empty folder."""
        if self.kept:
            return
        self._clear()
        remove_temporaries(self.out)
        if not {entry.name for entry in self._entries()} - {self.layout.begun}:
            remove(self.out / self.layout.begun)
            if self._fresh:
                remove(self.out)


def _differing(held: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Names under which two dictionaries differ, those within them included."""
    for name in {**held, **asked}:
        one, other = held.get(name), asked.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differing(one, other)
        elif one != other:
            yield name


def _is_there(path: Path) -> bool:
    """Whether there is a file, or a folder that shows something."""
    return not is_empty(path) if path.is_dir() else path.exists()


def _write_note(path: Path, content: dict[str, Any]) -> None:
    """Writes a note, with a checksum of itself."""
    write_json(path, {**content, _CHECKSUM: json_checksum(content)})


def read_note(path: Path) -> dict[str, Any] | None:
    """What a `Job` noted; None where there is nothing, empty where it is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
        told = {name: fact for name, fact in found.items() if name != _CHECKSUM}
        # A manifest has a checksum of another kind, which `Records` compares.
        own = _CHECKSUM in found and "shards" not in found
        return {} if own and found[_CHECKSUM] != json_checksum(told) else found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}
