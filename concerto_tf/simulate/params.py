"""The numbers that describe one simulated experiment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from concerto_tf.errors import InputError, checked_whole


@dataclass(frozen=True)
class SplatParams:
    """Parameters of the Splat model, with the defaults of the Splatter package.

    The defaults describe deeply sequenced cells (60,000 counts each). `SplatParams.droplet()`
    gives cells as droplet protocols do: 20,000 genes, about 1,300 of them seen in a cell.

    Args:
        n_cells: number of cells.
        n_genes: number of genes.
        seed: everything random follows from it; the same parameters give the same counts.
        mean_shape: shape of the gamma distribution of gene means.
        mean_rate: rate of that distribution. Only ratios of means matter for the counts.
        out_prob: share of genes that are outliers; their mean is the median gene mean times a
            lognormal factor.
        out_loc: log-mean of the outlier factor.
        out_scale: log-standard deviation of the outlier factor.
        lib_loc: log-mean of the lognormal distribution of expected counts per cell.
        lib_scale: its log-standard deviation.
        bcv_common: the biological coefficient of variation that abundant genes tend to.
        bcv_df: degrees of freedom of the inverse chi-square noise on it (`math.inf`: none).
        group_sizes: relative sizes of the groups (of the paths, when `paths`); (1, 1, 1) is
            three balanced groups. Each cell's group is drawn with these odds.
        de_prob: share of genes differentially expressed in a group; one number or one per group.
        de_down_prob: share of those that are lower in the group.
        de_loc: log-mean of the differential-expression factor.
        de_scale: log-standard deviation of that factor.
        batch_sizes: relative sizes of the batches.
        batch_loc: log-mean of the factor every gene has in each batch; one number or one per
            batch.
        batch_scale: its log-standard deviation.
        dropout_mid: log expression at which half of the counts are lost; None for no dropout.
        dropout_shape: steepness of the logistic; negative, so that low expression is lost.
        paths: groups are paths of a trajectory that cells lie along, instead of clusters.
        path_from: for each path the number (1, 2, ...) of the path at whose end it begins, 0 for
            the common origin. None: all begin at the origin.
        path_steps: positions along each path.
        path_skew: 0.5 spreads cells evenly over the steps, 1 thins them out linearly towards the
            end of the path, 0 towards its beginning.
        path_nonlinear_prob: share of genes that wander (Brownian bridge) from the beginning of
            the path to its end instead of changing linearly.
        path_sigma: standard deviation of that walk over the whole path before its end is tied
            down, relative to the gene's mean expression along the path.

    Raises:
        InputError: a value is outside of its range.

    Example:
        >>> SplatParams(n_cells=10, group_sizes=(3, 1)).n_groups
        2

    Reference:
        Zappia, Phipson and Oshlack, "Splatter: simulation of single-cell RNA sequencing data",
        Genome Biology 18:174 (2017).
    """

    n_cells: int = 1_000
    n_genes: int = 10_000
    seed: int = 0
    mean_shape: float = 0.6
    mean_rate: float = 0.3
    out_prob: float = 0.05
    out_loc: float = 4.0
    out_scale: float = 0.5
    lib_loc: float = 11.0
    lib_scale: float = 0.2
    bcv_common: float = 0.1
    bcv_df: float = 60.0
    group_sizes: tuple[float, ...] = (1.0,)
    de_prob: float | tuple[float, ...] = 0.1
    de_down_prob: float | tuple[float, ...] = 0.5
    de_loc: float | tuple[float, ...] = 0.1
    de_scale: float | tuple[float, ...] = 0.4
    batch_sizes: tuple[float, ...] = (1.0,)
    batch_loc: float | tuple[float, ...] = 0.1
    batch_scale: float | tuple[float, ...] = 0.1
    dropout_mid: float | None = None
    dropout_shape: float = -1.0
    paths: bool = False
    path_from: tuple[int, ...] | None = None
    path_steps: int = 100
    path_skew: float = 0.5
    path_nonlinear_prob: float = 0.1
    path_sigma: float = 0.8

    @classmethod
    def droplet(cls, **changes: Any) -> SplatParams:
        """Parameters that look like a droplet experiment, for any fields not in `changes`.

        20,000 genes, about 2,900 counts and 1,300 detected genes per cell.
        """
        return cls(**({"n_genes": 20_000, "lib_loc": 7.93, "lib_scale": 0.3} | changes))

    @property
    def n_groups(self) -> int:
        """Number of groups (of paths, when `paths`)."""
        return len(self.group_sizes)

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self.batch_sizes)

    def each(self, name: str) -> tuple[float, ...]:
        """The values of `name` for every group or batch, one number being repeated."""
        value = getattr(self, name)
        n = self.n_batches if name.startswith("batch") else self.n_groups
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * n

    def __post_init__(self) -> None:
        for name, least in (("n_cells", 1), ("n_genes", 1), ("seed", 0), ("path_steps", 2)):
            checked_whole(name, getattr(self, name), least)
        for name in ("mean_shape", "mean_rate", "bcv_df"):
            _check(name, getattr(self, name), above=0.0)
        for name in ("out_scale", "lib_scale", "bcv_common", "path_sigma"):
            _check(name, getattr(self, name), least=0.0)
        for name in ("out_prob", "path_skew", "path_nonlinear_prob"):
            _check(name, getattr(self, name), least=0.0, most=1.0)
        for name in ("out_loc", "lib_loc"):
            _check(name, getattr(self, name))
        for name in ("group_sizes", "batch_sizes"):
            sizes = getattr(self, name)
            if not sizes:
                raise InputError(f"{name} is empty: give at least one relative size.")
            for size in sizes:
                _check(name, size, above=0.0)
        for name, bounds in (
            ("de_prob", {"least": 0.0, "most": 1.0}),
            ("de_down_prob", {"least": 0.0, "most": 1.0}),
            ("de_loc", {}),
            ("de_scale", {"least": 0.0}),
            ("batch_loc", {}),
            ("batch_scale", {"least": 0.0}),
        ):
            values = self.each(name)
            n, what = (
                (self.n_batches, "batches")
                if name.startswith("batch")
                else (self.n_groups, "groups")
            )
            if len(values) != n:
                raise InputError(f"{name} has {len(values)} values for {n} {what}.")
            for value in values:
                _check(name, value, **bounds)
        if self.dropout_mid is not None:
            _check("dropout_mid", self.dropout_mid)
            _check("dropout_shape", self.dropout_shape, most=0.0)
        if self.path_from is not None:
            self._check_path_from(self.path_from)

    def _check_path_from(self, origins: tuple[int, ...]) -> None:
        if not self.paths:
            raise InputError("path_from is given but paths is not set: set paths=True.")
        if len(origins) != self.n_groups:
            raise InputError(f"path_from has {len(origins)} values for {self.n_groups} paths.")
        for path, origin in enumerate(origins, start=1):
            if int(origin) != origin or not 0 <= origin < path:
                raise InputError(
                    f"path {path} begins at path {origin}: a path begins at the origin (0) or at "
                    f"an earlier path (1 to {path - 1})."
                )


def _check(
    name: str,
    value: float,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
) -> None:
    """Raises InputError unless `value` is a number within its bounds."""
    if math.isfinite(value) or (name == "bcv_df" and value == math.inf):
        if least <= value <= most and (value > above or above == -math.inf):
            return
    parts = [f">= {least:g}"] * math.isfinite(least) + [f"<= {most:g}"] * math.isfinite(most)
    parts += [f"> {above:g}"] * math.isfinite(above)
    raise InputError(f"{name} is {value!r}: it must be {' and '.join(parts) or 'a finite number'}.")
