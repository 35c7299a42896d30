from __future__ import annotations

import pytest

from concerto_tf.records.genes.identifiers import (
    identifier_kind,
    species_of,
    species_prefixes,
    strip_version,
)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["CD3E", "HLA-A", "RP11-206L10.2", "MT-ND1"], "symbol"),
        (["ENSG00000198851", "ENSG00000156738"], "ensembl"),
        (["ENSMUSG00000000001.4", "ENSMUSG00000000028.15"], "ensembl_version"),
        (["FBgn0000008", "FBgn0000014"], "ensembl"),
        (["WBGene00000001"], "ensembl"),
        (["GRCh38_CD3E", "GRCh38_CD4"], "symbol"),
        (["mm10___ENSMUSG00000000001"], "ensembl"),
        (["gene_0", "gene_1", "gene_2"], "unnamed"),
        (["Gene10", "Gene200"], "unnamed"),
        (["0", "1", "2"], "unnamed"),
        (["1", "2", "3"], "unnamed"),
        (["7157", "1956", "3845"], "entrez"),
        (["ENSG00000198851", "CD3E", "CD4"], "symbol"),
        # The most frequent kind, but not of more than half.
        (["ENSG00000198851", "ENSG00000156738", "CD3E", "7157"], "symbol"),
        # Spike-ins say nothing about the kind.
        (["ENSG00000198851", "ERCC-00002", "ERCC-00003"], "ensembl"),
        ([], "symbol"),
    ],
)
def test_kind(names: list[str], kind: str) -> None:
    assert identifier_kind(names) == kind


@pytest.mark.parametrize(
    ("names", "species"),
    [
        (["ACTB", "CD3E", "HLA-A", "C1orf112"], "human"),
        (["Actb", "Cd3e", "H2-Aa", "0610007L01Rik"], "mouse"),
        (["actb1", "sox2", "pax6a"], "zebrafish"),
        (["ENSG00000198851.10"], "human"),
        (["ENSMUSG00000000001"], "mouse"),
        (["FBgn0000008"], "fly"),
        (["hg19_CD3E", "hg19_CD4"], "human"),
        (["gene_0", "gene_1"], None),
        (["7157", "1956"], None),
        (["ACTB", "Actb"], None),
        (["ENSXYZG00000000001"], None),
        ([], None),
    ],
)
def test_species(names: list[str], species: str | None) -> None:
    assert species_of(names) == species


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("ENSG00000198851.10", "ENSG00000198851"),
        ("ENSG00000182378.14_PAR_Y", "ENSG00000182378_PAR_Y"),
        # Clone names have a dot of their own.
        ("AL627309.1", "AL627309.1"),
        ("CD3E", "CD3E"),
    ],
)
def test_strip_version(name: str, stripped: str) -> None:
    assert strip_version(name) == stripped


def test_prefixes_most_frequent_first_and_rare_ones_not() -> None:
    names = ["GRCh38_A"] * 60 + ["mm10___b"] * 39 + ["hg19_C"]
    assert species_prefixes(names) == ["GRCh38_", "mm10___"]
    assert species_prefixes(["CD3E", "MT-ND1", "Mm_x"]) == []
