"""Opens what people have their cells in, and streams it in chunks of bounded size.

`open_input` goes by the content and not by the suffix, and its `Input` is the same for `.h5ad`,
`.h5mu`, `.zarr`, a 10x `.h5`, a 10x `mtx` folder, and an AnnData or a MuData in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf._paths import as_path, is_hdf5, is_remote, is_zarr, open_hdf5
from concerto_tf.errors import InputError, first_line
from concerto_tf.records.batch import RNA
from concerto_tf.records.inputs.by_cell import Scratch
from concerto_tf.records.inputs.features import MissingModality
from concerto_tf.records.inputs.from_10x import is_10x, open_10x_h5, open_mtx
from concerto_tf.records.inputs.from_anndata import is_stored_anndata, open_adata, open_stored
from concerto_tf.records.inputs.from_mudata import (
    is_stored_mudata,
    open_mudata,
    open_stored_mudata,
)
from concerto_tf.records.inputs.input import Input, not_damage

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
_ACCEPTED = "an .h5ad, an .h5mu, a .zarr, a 10x .h5 or a 10x mtx folder"


def open_input(
    source: str | Path | AnnData | Input,
    *,
    layer: str | None = None,
    modalities: Mapping[str, str] | None = None,
    lenient: bool = False,
    scratch: str | Path | None = None,
) -> Input:
    """Opens cells for streaming.

    Args:
        source: path of an `.h5ad`, `.h5mu`, `.zarr`, 10x `.h5`, 10x `mtx` folder (or the `.mtx`
            within), or an AnnData or MuData (in memory, view or backed). An Input is taken as it
            is, open already.
        layer: "X", a name in `layers`, or "raw" for `.raw` with its own genes. None: X, or where X
            holds no counts, the counts in `.raw` or else in a layer "counts", which `notes` then
            say. For a 10x `.h5` of Cell Ranger 2 with several genomes: which genome.
        modalities: name -> where it lies: "obsm:KEY" (a data frame, array or sparse matrix),
            "layer:NAME", or "feature_types:TYPE" such as "feature_types:Antibody Capture" (10x, and
            AnnData with `var["feature_types"]`). Where features have types, the RNA is those of
            type "Gene Expression". Of a MuData: "mod:NAME", and {"rna": "mod:NAME"} says which of
            its modalities is the RNA, where that is called neither rna nor gex. None: none, but of
            a MuData its protein.
        lenient: Leave out modalities that are not there instead of raising an error.
        scratch: folder for the copy sorted by cell that a column-ordered file (CSC, mtx) needs. It
            stays there, and the next call for the same file finds it. None: a temporary folder that
            goes away with `close`.

    Returns:
        The open input.

    Raises:
        InputError: missing, truncated, none of these formats, no cells, no genes, duplicate gene
            names, layer or modality not there. The message says what, where and how to mend it.
    """
    if isinstance(source, Input):
        return source
    asked = modalities = None if modalities is None else dict(modalities)
    while lenient:
        try:
            found = open_input(source, layer=layer, modalities=modalities, scratch=scratch)
        except MissingModality as error:
            modalities = {
                key: of for key, of in (modalities or {}).items() if key != error.modality
            }
        else:
            found.opened = found.opened and (*found.opened[:2], asked)
            return found
    for name, place in (modalities or {}).items():
        if name == RNA and place.startswith("mod:"):
            continue
        if not name.replace("_", "").isalnum() or name == RNA:
            raise InputError(
                f"modality name {name!r}: use letters, digits and _ (and not {RNA!r}, which is X)"
            )
    if not isinstance(source, str | Path):
        if not hasattr(source, "obs_names"):
            raise InputError(f"{type(source).__name__}: give a path or an AnnData")
        if hasattr(source, "mod"):
            return _named("MuData", lambda: open_mudata(source, layer, modalities))
        return _named("AnnData", lambda: open_adata(source, layer, modalities or {}))
    path = as_path(source).expanduser().absolute()
    if not path.exists():
        raise InputError(f"{source}: there is no such file or folder; check the path")
    with ExitStack() as stack:
        space = Scratch(scratch)
        stack.callback(space.remove)
        cells = _named(path.name, lambda: _open_path(path, layer, modalities, space, stack))
        cells._on_close = stack.pop_all().close
    cells.opened = (as_path(source), layer, modalities)
    cells._reopen = partial(
        open_input, str(path), layer=layer, modalities=modalities, scratch=space.folder
    )
    return cells


def _open_path(
    path: Path,
    layer: str | None,
    asked: dict[str, str] | None,
    scratch: Scratch,
    stack: ExitStack,
) -> Input:
    modalities = asked or {}
    if path.is_dir():
        if is_zarr(path):
            root = _open_zarr(path)
            if is_stored_mudata(root):
                return open_stored_mudata(path, root, layer, asked, scratch)
            return open_stored(path, root, layer, modalities, scratch)
        return open_mtx(path, None, layer, modalities, scratch)
    if path.name.endswith((".mtx", ".mtx.gz")):
        return open_mtx(path.parent, path.name, layer, modalities, scratch)
    file = _open_hdf5(path)
    stack.callback(file.close)
    if is_stored_mudata(file):
        return open_stored_mudata(path, file, layer, asked, scratch)
    if is_stored_anndata(file):
        return open_stored(path, file, layer, modalities, scratch)
    if is_10x(file):
        return open_10x_h5(path, file, layer, modalities)
    held = ", ".join(list(file)[:12]) or "nothing"
    raise InputError(
        f"neither an AnnData, a MuData nor a 10x file (it holds: {held}); give {_ACCEPTED}"
    )


def _open_hdf5(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise InputError("the file is empty; copy or download it again")
    if start != b"\x89HDF\r\n\x1a\n" and not is_hdf5(path):
        hint = "gunzip it first" if start[:2] == b"\x1f\x8b" else f"give {_ACCEPTED}"
        raise InputError(f"not a file of a known format; {hint}")
    try:
        return open_hdf5(path)
    except PermissionError:
        raise
    except OSError as error:
        raise InputError(
            f"truncated or damaged ({first_line(error)}); copy or download it again"
        ) from error


def _open_zarr(path: Path) -> Any:
    import zarr

    if is_remote(path):
        raise InputError("zarr is read from this machine's disk only; copy the store here")
    group = zarr.open(str(path), mode="r")
    if not isinstance(group, zarr.Group) or not (
        is_stored_mudata(group) or is_stored_anndata(group)
    ):
        raise InputError("a zarr store, but not of an AnnData; write it with adata.write_zarr(...)")
    _check_chunks(group, path.name)
    return group


def _check_chunks(group: Any, name: str) -> None:
    """Raises InputError where chunks of values are missing, which zarr would read as zeros.

    Of what may be zeros, a chunk that is not stored is said. So is a store without checksums: zarr
    compares them where a codec has them (crc32c), and can notice no other damage.
    """
    import zarr

    checked = True
    for place, array in group.members(max_depth=None):
        if not isinstance(array, zarr.Array):
            continue
        lost = getattr(array, "nshards", array.nchunks) - array.nchunks_initialized
        if lost > 0 and place.endswith(("/data", "/indices")):
            raise InputError(f"{lost} chunks of {place} are missing; copy the store again")
        if lost > 0:
            _log.warning(
                "%s: %d chunks of %s are not stored and read as %s",
                name,
                lost,
                place,
                array.fill_value,
            )
        checked &= "crc32" in str(array.metadata.to_dict())
    if not checked:
        _say_unchecked(name)


@lru_cache
def _say_unchecked(name: str) -> None:
    _log.info("%s: has no checksums, as most zarr stores; damage to its chunks may not show", name)


def _named(name: str, open_it: Any) -> Input:
    """Opens; puts the file's name before a message and turns what libraries raise into one."""
    try:
        return open_it()
    except MissingModality as error:
        raise MissingModality(error.modality, f"{error.reason} in {name}") from error
    except InputError as error:
        text = error.message
        text = text if text.startswith(f"{name}: ") else f"{name}: {text}"
        raise InputError(text, error.argument) from error
    except PermissionError as error:
        raise InputError(
            f"{name}: you are not permitted to read it; ask its owner, or copy it"
        ) from error
    except Exception as error:  # noqa: BLE001 - whatever is raised, the file is what is wrong
        mend = not_damage(error) or "it is damaged or not what its name says"
        raise InputError(f"{name}: cannot be read ({first_line(error)}); {mend}") from error
