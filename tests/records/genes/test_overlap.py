from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records.genes.orthologs import Orthologs, read_orthologs
from concerto_tf.records.genes.overlap import check_overlap, match, union
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.inputs.opening import open_input

ENSEMBL = tuple(f"ENSG{i:011d}" for i in range(100, 104))
SYMBOLS = ("CD3E", "CD4", "CD8A", "MS4A1")
TENX = Vocabulary(ENSEMBL, symbols=SYMBOLS)


@pytest.mark.parametrize(
    ("query", "reference", "index", "how"),
    [
        (Vocabulary(SYMBOLS), Vocabulary(SYMBOLS), [0, 1, 2, 3], "the same gene symbols"),
        (Vocabulary(("CD4", "X1")), Vocabulary(SYMBOLS), [1, -1], "gene symbols"),
        (Vocabulary(ENSEMBL[::-1]), TENX, [3, 2, 1, 0], "Ensembl ids"),
        (Vocabulary(("CD8A", "CD3E")), TENX, [2, 0], "gene symbols"),
        (TENX, Vocabulary(("CD8A", "CD3E")), [1, -1, 0, -1], "gene symbols"),
        (
            TENX,
            Vocabulary(("a", "b"), ensembl=(ENSEMBL[3], ENSEMBL[0])),
            [1, -1, -1, 0],
            "Ensembl ids",
        ),
        (
            Vocabulary(tuple(f"{id}.7" for id in ENSEMBL)),
            TENX,
            [0, 1, 2, 3],
            "Ensembl ids, without version",
        ),
        (
            Vocabulary(tuple(f"{id}.7" for id in ENSEMBL)),
            Vocabulary(tuple(f"{id}.11" for id in ENSEMBL)),
            [0, 1, 2, 3],
            "Ensembl ids, without version",
        ),
        (
            Vocabulary(tuple(f"GRCh38_{name}" for name in SYMBOLS)),
            Vocabulary(SYMBOLS),
            [0, 1, 2, 3],
            "gene symbols, prefix 'GRCh38_' of the query removed",
        ),
        (
            Vocabulary(SYMBOLS),
            Vocabulary(tuple(f"hg19_{name}" for name in SYMBOLS)),
            [0, 1, 2, 3],
            "gene symbols, prefix 'hg19_' of the reference removed",
        ),
        (
            # Two species in one list: the reference's own is found, the other left out.
            Vocabulary(("mm10___Cd4", "GRCh38_CD3E", "mm10___Cd8a", "GRCh38_CD4")),
            Vocabulary(SYMBOLS),
            [-1, 0, -1, 1],
            "gene symbols, prefix 'GRCh38_' of the query removed",
        ),
        (
            Vocabulary(("gene_1", "gene_0")),
            Vocabulary(("gene_0", "gene_1")),
            [1, 0],
            "running numbers (no names)",
        ),
        # Never by case, never by running number.
        (Vocabulary(("Cd4", "Cd3e")), Vocabulary(SYMBOLS), [-1, -1], "any name"),
        (Vocabulary(("gene_0",)), Vocabulary(("gene_0", "gene_1")), [-1], "any name"),
    ],
)
def test_rules(query: Vocabulary, reference: Vocabulary, index: list[int], how: str) -> None:
    found = match(query, reference)
    assert found.index.tolist() == index
    assert found.how == how
    hits = [i for i in index if i >= 0]
    assert found.shared == len(set(hits))
    assert found.missing == len(reference) - len(set(hits))
    assert found.extra == index.count(-1)


def test_the_rule_with_most_genes_wins() -> None:
    query = Vocabulary((*ENSEMBL[:1], "ENSG00000000999", "ENSG00000000998"), ("?", "CD4", "CD8A"))
    found = match(query, TENX)
    assert found.how == "gene symbols"
    assert found.index.tolist() == [-1, 1, 2]


def test_most_genes_are_counted_in_the_reference() -> None:
    # By symbol three query genes reach one reference gene; by id two reach two.
    query = Vocabulary(
        ("ENSG00000000999", "ENSG00000000998", "ENSG00000000997", *ENSEMBL[:2]),
        symbols=("CD4", "CD4", "CD4", "", ""),
    )
    assert match(query, TENX).index.tolist() == [-1, -1, -1, 0, 1]


def test_genes_with_one_symbol_are_summed() -> None:
    query = Vocabulary(ENSEMBL, symbols=("TBCE", "CD4", "TBCE", "CD8A"))
    found = match(query, Vocabulary(("CD4", "TBCE", "LYZ")))
    values = sp.csr_matrix(np.array([[200, 1, 100, 9], [0, 0, 7, 0]], dtype=np.uint8))
    carried = found.apply(values)
    assert carried.toarray().tolist() == [[1, 300, 0], [0, 7, 0]]
    assert found.n_summed == 2
    assert "2 genes summed" in found.report()


def test_a_symbol_of_several_reference_genes_goes_to_the_first() -> None:
    reference = Vocabulary(ENSEMBL, symbols=("CD4", "TBCE", "TBCE", "CD8A"))
    found = match(Vocabulary(("TBCE", "CD8A")), reference)
    assert found.index.tolist() == [1, 3]
    assert found.n_ambiguous == 1
    assert "1 with a name that several genes bear, given to the first" in found.report()


def test_apply_equals_the_matrix_product_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    names = np.array([f"G{i}X" for i in range(60)])
    query = Vocabulary(tuple(rng.permutation(names)[:40]))
    reference = Vocabulary(tuple(rng.permutation(names)[:50]))
    found = match(query, reference)
    values = sp.csr_matrix(rng.poisson(0.7, (30, 40)).astype(np.float32))
    carried = found.apply(values)
    assert carried.dtype == np.float32
    assert carried.has_sorted_indices
    expected = np.zeros((30, 50), dtype=np.float32)
    for i, name in enumerate(query.ids):
        if name in reference.ids:
            expected[:, reference.ids.index(name)] = values.toarray()[:, i]
    np.testing.assert_array_equal(carried.toarray(), expected)
    np.testing.assert_array_equal((values @ found.matrix()).toarray(), expected)


def test_same_genes_are_not_copied() -> None:
    found = match(TENX, TENX)
    values = sp.csr_matrix(np.eye(4))
    assert found.is_identity
    assert found.apply(values) is values
    assert not match(Vocabulary(SYMBOLS[::-1]), Vocabulary(SYMBOLS)).is_identity


ORTHOLOGS = Orthologs(
    ("human", "mouse"),
    (
        ("CD4", "Cd4"),
        ("GSTM1", "Gstm1"),
        ("GSTM1", "Gstm2"),
        ("IFNA1", "Ifna1"),
        ("IFNA2", "Ifna1"),
    ),
)


@pytest.mark.parametrize("backwards", [False, True])
def test_orthologs_in_both_directions(backwards: bool) -> None:
    human = Vocabulary(("CD4", "GSTM1", "IFNA1", "IFNA2", "LYZ"))
    mouse = Vocabulary(("Ifna1", "Gstm2", "Gstm1", "Cd4", "Xist"))
    values = np.array([[1.0, 20.0, 300.0, 4000.0, 5.0]])
    if backwards:
        found = match(mouse, human, ORTHOLOGS)
        assert found.how == "gene symbols, orthologs mouse -> human"
        # Ifna1 adds to both IFNA genes, the two Gstm are summed.
        assert found.apply(sp.csr_matrix(values)).toarray().tolist() == [[4000, 320, 1, 1, 0]]
    else:
        found = match(human, mouse, ORTHOLOGS)
        assert found.how == "gene symbols, orthologs human -> mouse"
        assert found.apply(sp.csr_matrix(values)).toarray().tolist() == [[4300, 20, 20, 1, 0]]
    assert (found.n_summed, found.n_spread) == (2, 1)
    assert (found.shared, found.missing, found.extra) == (4, 1, 1)
    assert "2 genes summed" in found.report() and "1 genes added to several" in found.report()


def test_orthologs_do_not_disturb_one_species() -> None:
    found = match(Vocabulary(("CD4", "LYZ")), Vocabulary(("LYZ", "CD4", "X")), ORTHOLOGS)
    assert found.how == "gene symbols"


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_read_orthologs(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "table.txt"
    lines = [("human", "mouse"), ("CD4", "Cd4"), ("LYZ", ""), ("GSTM1", "Gstm1")]
    path.write_text("\n".join(delimiter.join(line) for line in lines) + "\n")
    assert read_orthologs(path) == Orthologs(
        ("human", "mouse"), (("CD4", "Cd4"), ("GSTM1", "Gstm1"))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "two columns are needed, named by species, such as human,mouse; it is empty"),
        ("human\nCD4\n", "line 1 has 1"),
        ("human,mouse\nCD4,Cd4\nA,b,c\n", "line 3 has 3"),
        ("human,mouse\n", "no pair of genes below the header human,mouse"),
    ],
)
def test_bad_orthologs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_orthologs(path)


def test_missing_orthologs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.csv: the ortholog table cannot be read"):
        read_orthologs(tmp_path / "none.csv")


def test_union_keeps_the_first_order_and_appends() -> None:
    joint, matches = union(
        [Vocabulary(("B", "A", "C")), Vocabulary(("C", "D", "A")), Vocabulary(("E", "D", "B"))]
    )
    assert joint.ids == ("B", "A", "C", "D", "E")
    assert [found.index.tolist() for found in matches] == [[0, 1, 2], [2, 3, 1], [4, 3, 0]]
    assert all(found.reference is joint and found.extra == 0 for found in matches)
    assert matches[0].missing == 2
    assert "2 shared with the inputs before, 1 new" in matches[1].how


def test_union_of_ids_and_symbols_names_genes_alike() -> None:
    symbols = Vocabulary(("CD4", "CD8A", "LYZ"))
    joint, (_, found) = union([symbols, TENX])
    assert joint.ids == ("CD4", "CD8A", "LYZ", "CD3E", "MS4A1")
    assert joint.ensembl == ("", "", "", ENSEMBL[0], ENSEMBL[3])
    assert found.index.tolist() == [3, 0, 1, 4]
    joint, _ = union(
        [TENX, Vocabulary(("CD4", "CD8A", "LYZ"), ensembl=("", "", "ENSG00000090382"))]
    )
    assert joint.ids == (*ENSEMBL, "ENSG00000090382")
    assert joint.symbols == (*SYMBOLS, "LYZ")


def test_union_by_symbol_does_not_repeat_an_id() -> None:
    # The second file's annotation renamed one gene; its id is still the same gene.
    renamed = Vocabulary(("ENSG00000000999", "ENSG00000000998", ENSEMBL[0]), ("CD4", "CD8A", "NEW"))
    joint, (_, found) = union([TENX, renamed])
    assert found.how.startswith("gene symbols")
    assert joint.ids == ENSEMBL
    assert found.index.tolist() == [1, 2, 0]


def test_union_refuses_strangers_and_names_them() -> None:
    with pytest.raises(InputError, match="^b.h5ad: only 0 of its 3 genes"):
        union([TENX, Vocabulary(("X1Z", "X2Z", "X3Z"))], ["a.h5ad", "b.h5ad"])


def many(prefix: str, n: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}Q" for i in range(n))


@pytest.mark.parametrize(
    ("query", "reference", "enough"),
    [
        (many("A", 9), (*many("A", 9), *many("B", 2000)), False),
        (many("A", 60), (*many("A", 60), *many("B", 2000)), True),
        ((*many("A", 60), *many("C", 2000)), (*many("A", 60), *many("B", 2000)), False),
        ((*many("A", 300), *many("C", 2000)), (*many("A", 300), *many("B", 2000)), True),
        (many("A", 1), many("A", 1), True),
        (many("A", 4), (*many("A", 2), *many("B", 2)), True),
        (many("A", 4), (*many("A", 1), *many("B", 3)), False),
    ],
)
def test_how_few_are_too_few(
    query: tuple[str, ...], reference: tuple[str, ...], enough: bool
) -> None:
    found = match(Vocabulary(query), Vocabulary(reference))
    if enough:
        check_overlap(found, "query.h5ad")
    else:
        with pytest.raises(InputError, match="^query.h5ad: only"):
            check_overlap(found, "query.h5ad")


@pytest.mark.parametrize(
    ("query", "reference", "message"),
    [
        (
            Vocabulary(("Actb", "Cd4")),
            Vocabulary(("1060P11.3", "ACTB", "CD4")),
            "q: only 0 of its 2 genes are among the 3 they are to be matched to; they look like "
            "mouse (gene symbols: Actb), the others like human (gene symbols: ACTB); give an "
            "ortholog table that has these names (orthologs=...)",
        ),
        (
            Vocabulary(("ACTB", "CD4")),
            Vocabulary(ENSEMBL),
            "q: only 0 of its 2 genes are among the 4 they are to be matched to; they are gene "
            "symbols (ACTB), the others Ensembl ids (ENSG00000000100); add the other names to var "
            "as 'gene_ids' or 'gene_symbols'",
        ),
        (
            Vocabulary(("gene_0", "gene_1")),
            Vocabulary(SYMBOLS),
            "q: only 0 of its 2 genes are among the 4 they are to be matched to; one side numbers "
            "its genes (gene_0, ...), and numbers of different files cannot be matched; give the "
            "genes their names",
        ),
        (
            Vocabulary(("XA", "XB")),
            Vocabulary(SYMBOLS),
            "q: only 0 of its 2 genes are among the 4 they are to be matched to; for example 'XA' "
            "and 'CD3E'; is it the right file?",
        ),
    ],
)
def test_the_refusal_names_the_likely_cause(
    query: Vocabulary, reference: Vocabulary, message: str
) -> None:
    with pytest.raises(InputError) as error:
        check_overlap(match(query, reference), "q")
    assert str(error.value) == message


def test_report() -> None:
    found = match(Vocabulary(("CD4", "XY", "LYZ")), Vocabulary(SYMBOLS))
    assert found.report() == (
        "1 of 4 genes found by gene symbols; 3 missing (not measured), 2 of the input's 3 left out"
    )


def test_real_mouse_and_human_files_meet_through_orthologs(shared_data: Path) -> None:
    with (
        open_input(shared_data / "paul15_hematopoiesis.h5ad") as mouse,
        open_input(shared_data / "pbmc3k.h5ad") as human,
    ):
        by_name = match(mouse.genes, human.genes)
        with pytest.raises(InputError, match="look like mouse .* the others like human"):
            check_overlap(by_name, mouse.name)
        table = read_orthologs(shared_data / "human_mouse_orthologs.csv")
        found = match(mouse.genes, human.genes, table)
        assert found.how == "gene symbols, orthologs mouse -> human"
        assert found.shared > 2500
        check_overlap(found, mouse.name)
        # Where every gene goes to one place, nothing is lost or made up.
        values = mouse.chunk(0, 50)["rna"]
        single = np.bincount(found.query_index, minlength=len(mouse.genes))
        expected = (values.toarray() * single).sum()
        assert found.apply(values).sum() == expected > 0
