"""Pages that can be sent on: what is in them, that text stays text, and how they open."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from concerto_tf.errors import InputError
from concerto_tf.report import (
    Bars,
    CellMap,
    Curve,
    Facts,
    Heat,
    Page,
    Section,
    Table,
    Text,
    by_category,
    by_number,
    parts,
    render,
    write_page,
)
from concerto_tf.tasks.demo import demo

EVIL = "</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}<b>"


class Seen(HTMLParser):
    """Elements of a document, and its text outside of scripts and styles."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.text += data


def figures(document: str) -> list[dict[str, Any]]:
    packed = re.search(r'id="data">([^<]*)<', document)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))["figures"]


def make_map(n: int = 50, names: list[str] | None = None) -> CellMap:
    rng = np.random.default_rng(0)
    colors = {
        "cluster": by_category(rng.integers(-1, 3, n), ["a", "b", "c"]),
        "confidence": by_number(np.where(rng.random(n) < 0.1, np.nan, rng.random(n))),
    }
    return CellMap(rng.normal(size=(n, 2)), names or [f"cell{i}" for i in range(n)], colors)


def whole_page(word: str) -> Page:
    """A page with every part, which says a word wherever text can be."""
    n = 30
    codes = np.arange(n) % 2
    drawn = [
        CellMap(np.eye(n)[:, :2], [word] * n, {word: by_category(codes, [word, "b"])}, word),
        Curve(word, np.arange(4.0), {word: np.arange(4.0)}, word, word),
        Bars([word, "b"], {word: np.array([1.0, 2.0])}, word, note=word),
        Heat([word], ["b", word], np.array([[1.0, np.nan]]), word, word),
    ]
    written = [
        Text([word]),
        Text([word], "warning"),
        Facts({word: word}),
        Table([word, "n"], [[word, 3]], word),
    ]
    return Page(word, word, {word: word}, [Section(word, [*written, *drawn])], word)


def test_text_stays_text() -> None:
    evil, tame = (Seen(render(whole_page(word))) for word in (EVIL, "word"))
    assert [tag for tag, _ in evil.elements] == [tag for tag, _ in tame.elements]
    assert evil.text == tame.text.replace("word", EVIL)
    for _, attributes in evil.elements:
        assert not any(name.startswith("on") for name in attributes)


def test_document_needs_nothing_from_elsewhere() -> None:
    document = render(whole_page("word"))
    for tag, attributes in Seen(document).elements:
        assert tag not in ("link", "iframe", "img", "object", "embed")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert "default-src 'none'" in document and "connect-src" not in document
    own = re.sub(r'id="(plotly|data)">[^<]*<', "", document)
    assert "http://" not in own and "https://" not in own


def test_map_draws_every_cell_under_its_name() -> None:
    cells = make_map()
    [drawn] = figures(render(Page("t", "l", sections=[Section("m", [cells])])))
    assert sorted(drawn["names"]) == sorted(f"cell{i}" for i in range(50))
    xy = np.array([drawn["x"], drawn["y"]]).T
    order = [int(name.removeprefix("cell")) for name in drawn["names"]]
    step = np.ptp(cells.xy, axis=0).max() / 20_000
    np.testing.assert_allclose(xy * step + cells.xy.min(axis=0), cells.xy[order], atol=step)
    cluster, confidence = drawn["colors"]
    codes = cells.colors["cluster"]["values"]
    assert cluster["values"] == codes[order].tolist() and cluster["categories"] == ["a", "b", "c"]
    assert cluster["sizes"] == [int((codes == i).sum()) for i in range(3)]
    assert cluster["missing"] == (codes == -1).sum()
    missing = np.isnan(cells.colors["confidence"]["values"])[order]
    assert [value is None for value in confidence["values"]] == missing.tolist()


def test_cells_past_what_can_be_drawn_are_left_out_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "MOST_POINTS", 40)
    document = render(Page("t", "l", sections=[Section("m", [make_map(1500)])]))
    [drawn] = figures(document)
    assert len(drawn["x"]) == len(drawn["names"]) == len(set(drawn["names"])) == 40
    assert sum(drawn["colors"][0]["sizes"]) + drawn["colors"][0]["missing"] == 1500
    assert "40 of the 1,500 cells are drawn" in Seen(document).text


def test_map_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(InputError, match="names has 3 values for 2 cells"):
        CellMap(np.zeros((2, 2)), ["a", "b", "c"], {})
    with pytest.raises(InputError, match="type has 1 values for 2 cells"):
        CellMap(np.zeros((2, 2)), ["a", "b"], {"type": by_category(np.zeros(1, int), ["T"])})


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_cells(n: int) -> None:
    cells = CellMap(np.zeros((n, 2)), ["x"] * n, {"c": by_category(np.zeros(n, int), ["T"])})
    [drawn] = figures(render(Page("t", "l", sections=[Section("m", [cells])])))
    assert len(drawn["x"]) == n


def test_numbers_in_tables_and_the_same_page_twice(tmp_path: Path) -> None:
    table = Table(["a", "b", "c"], [["x", 1234567, 0.12345], ["y", float("nan"), None]])
    page = Page("t", "l", sections=[Section("s", [table])])
    document = render(page)
    assert '<td class="number">1,234,567</td><td class="number">0.123</td>' in document
    assert "<script" not in document  # nothing is drawn
    write_page(whole_page("word"), tmp_path / "a.html")
    write_page(whole_page("word"), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(("values", "share"), [([0.99, 1.0, np.nan], True), ([-1.0, 0.5], False)])
def test_shares_are_colored_from_zero_to_one(values: list[float], share: bool) -> None:
    cells = CellMap(np.eye(len(values), 2), list("abc")[: len(values)], {"n": by_number(values)})
    [figure] = figures(render(Page("t", "l", sections=[Section("m", [cells])])))
    assert figure["colors"][0]["share"] is share


def test_size_of_many_cells() -> None:
    n = 100_000
    rng = np.random.default_rng(0)
    letters = np.array(list("ACGT"))[rng.integers(0, 4, (n, 16))]
    names = np.char.add(letters.view("U16").ravel(), "-1").tolist()
    colors = {
        "cluster": by_category(rng.integers(0, 30, n), [f"c{i}" for i in range(30)]),
        "source": by_category(rng.integers(0, 8, n), [f"s{i}" for i in range(8)]),
        "confidence": by_number(rng.random(n)),
    }
    cells = CellMap(rng.normal(size=(n, 2)), names, colors)
    began = time.perf_counter()
    document = render(Page("t", "l", sections=[Section("m", [cells])]))
    assert len(document) < 15e6
    assert time.perf_counter() - began < 60


@pytest.fixture(scope="module")
def browser() -> str:
    """Chromium; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no chromium to open pages with")


def opened(browser: str, path: Path, folder: Path) -> tuple[str, list[str], list[str]]:
    """The document once drawn, what the console said, and addresses that the page asked for."""
    log = folder / "net.json"
    options = (
        "--headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --no-first-run "
        "--disable-background-networking --virtual-time-budget=30000 --enable-logging=stderr "
        "--dump-dom"
    ).split()
    own = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"]
    call = subprocess.run(
        [browser, *options, *own, path.as_uri()], capture_output=True, text=True, timeout=180
    )
    # What software draws with, where there is no graphics card, says how slow that is.
    lines = [line for line in call.stderr.splitlines() if "CONSOLE" in line]
    console = [line for line in lines if "GL Driver Message" not in line]
    text = log.read_text("utf-8", "replace").rstrip().rstrip(",")
    content = json.loads(text if text.endswith("}") and "polledData" in text else f"{text}]}}")
    start = content["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    starts = [event.get("params", {}) for event in content["events"] if event["type"] == start]
    # The browser's own requests have no origin; those of a file have one without a name.
    asked = [of["url"] for of in starts if of.get("initiator", "not an origin") != "not an origin"]
    return call.stdout, console, [url for url in asked if not url.startswith(("file:", "data:"))]


def test_page_opens_in_a_browser(browser: str, tmp_path: Path) -> None:
    write_page(whole_page(EVIL), tmp_path / "page.html")
    document, console, asked = opened(browser, tmp_path / "page.html", tmp_path)
    assert 'data-drawn="4"' in document, console
    assert 'id="failed" hidden' in document
    assert document.count("js-plotly-plot") >= 4
    assert console == [] and asked == []
    assert not any(tag == "img" for tag, _ in Seen(document).elements)

    # What is listened for here can be heard.
    loud = "<img src='http://127.0.0.1:9/x.png'><script>console.error('loud')</script>"
    (tmp_path / "loud.html").write_text(loud)
    _, console, asked = opened(browser, tmp_path / "loud.html", tmp_path)
    assert asked == ["http://127.0.0.1:9/x.png"] and any("loud" in line for line in console)


@pytest.mark.slow
def test_report_of_the_demo_opens_in_a_browser(browser: str, tmp_path: Path) -> None:
    demo(tmp_path / "demo")
    document, console, asked = opened(browser, tmp_path / "demo" / "report.html", tmp_path)
    assert re.search(r'data-drawn="[1-9]', document), console
    assert "CD14+ Monocyte" in document and 'id="failed" hidden' in document
    assert console == [] and asked == []
    assert str(tmp_path) not in document.replace(f"file://{tmp_path}", "")
