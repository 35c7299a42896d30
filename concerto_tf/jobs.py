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
another call is told in what it differs. Inputs are compared by their `identity_of_*`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf._files import is_empty, remove, remove_temporaries, sha256, write_json
from concerto_tf._lock import FolderLock
from concerto_tf._paths import as_path
from concerto_tf.errors import Argument, InputError

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")


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
        scratch: Folders that the finished work has no use for.
        products: Patterns of what else the work makes.
    """

    noun: str
    begun: str
    finished: str
    results: tuple[str, ...] = ()
    keep: str | None = None
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
        finished: Whether the same call has been finished here.
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
            for folder in ("", *self.layout.scratch):
                if (self.out / folder).is_dir():
                    remove_temporaries(self.out / folder)
            if not self._same and (self.out / self.layout.begun).exists():
                _log.info("%s: what was begun there of something else is begun anew", self.out)
            if self.finished or not self._same:
                self._clear()
            self._began = True
            self.note(**self.facts)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> InputError:
        why = error.strerror or str(error)
        return InputError(f"{self.out}: cannot be written ({why}); name another folder", "out")

    def note(self, **facts: Any) -> None:
        """Keeps facts about unfinished work, for `facts` of a later call."""
        self.check()
        self.facts = facts
        path = self.out / self.layout.begun
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"asked": self.asked, **facts})

    def finish(self, **facts: Any) -> None:
        """Says that the work is done, and removes what only unfinished work needs."""
        self.check()
        write_json(self.out / self.layout.finished, {"asked": self.asked, **facts})
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
        whole = all(_is_there(out / name) for name in (layout.finished, *layout.results))
        found = layout.finished if whole else layout.begun
        self._same = self.finished = False
        if not (out / found).exists():
            if any(not self._is_left_over(entry) for entry in self._entries()):
                raise InputError(
                    f"{out}: is not empty and holds no {layout.noun}; name another folder", "out"
                )
            return
        self.facts = _read(out / found)
        held = self.facts.pop("asked", None)
        self._same = self.asked is not None and held == self.asked
        self.finished = whole and self._same
        if self._same:
            return
        self.facts = {}
        if self.kept or (whole and not self._overwrite):
            noun = layout.noun if whole else f"unfinished {layout.noun}"
            article = "" if noun.endswith("s") else "a " if whole else "an "
            both = isinstance(held, dict) and held and self.asked
            names = list(_differing(held, self.asked)) if both and self.asked else []
            listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
            what = f"differing in {listed}" if names else "of something else"
            ways = "remove this one, or name another folder", Argument("out")
            if self._overwrite is not None:
                ways = "name another folder, or overwrite this one", Argument("overwrite", True)
            raise InputError(f"{out}: holds {article}{noun} {what}; {ways[0]}", ways[1])

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


def json_checksum(asked: Any) -> str:
    """A checksum of anything that JSON holds.

    Example:
        >>> json_checksum({"seed": 0, "genes": None}) == json_checksum({"genes": None, "seed": 0})
        True
    """
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def identity_of_cells(cells: str | Path | AnnData, without: Path | None = None) -> str:
    """What tells cells apart: files by names, sizes and times, an AnnData in memory by its content.

    Args:
        cells: Path of a file or a folder, or an AnnData.
        without: A folder for results, which may lie in the one that the cells are in.

    Returns:
        A checksum.

    Raises:
        InputError: There is no such file.
    """
    if isinstance(cells, str | Path):
        path = as_path(cells).expanduser()
        if not path.exists():
            raise InputError(f"{cells}: there is no such file or folder; check the path")
        return json_checksum(_marks(path, without))
    import joblib

    x = _marks(Path(cells.filename), None) if cells.isbacked else cells.X
    raw = None if cells.raw is None else (cells.raw.X, cells.raw.var)
    parts = [cells.obs, cells.var, x, dict(cells.layers), dict(cells.obsm), raw]
    return str(joblib.hash(parts, hash_name="sha1"))


def identity_of_file(path: str | Path) -> str:
    """What tells a small file apart that may change: its name and a checksum of its content."""
    return f"{as_path(path).name} {sha256(path)}"


def identity_of_records(records: Any) -> str:
    """What tells records apart: the checksums of their shards."""
    return json_checksum([shard.sha256 for shard in records.manifest.shards])


def identity_of_model(model: Any) -> str:
    """What tells a model in memory apart: its configuration and its weights."""
    digest = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True).encode())
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()


def _marks(path: Path, without: Path | None) -> list[list[Any]]:
    """Name, size and time of a file, or of each file in a folder."""
    own = path.absolute()
    place = None if without is None else without.absolute()
    # Results that lie in the folder itself lie in one of its entries.
    results = own / place.relative_to(own).parts[0] if place and own in place.parents else None
    marks = []
    for entry in sorted(own.rglob("*")) if own.is_dir() else [own]:
        if entry.is_file() and results not in (entry, *entry.parents):
            status = entry.stat()
            marks.append([own.name, entry.name, status.st_size, status.st_mtime_ns])
    return marks


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


def _read(path: Path) -> dict[str, Any]:
    """A note; empty where it is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
