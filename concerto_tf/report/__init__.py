"""Pages that can be sent on: one HTML file that opens without a network.

A `Page` is made of sections, these of parts: text, facts, tables, and figures that can be zoomed
and asked. It is written by `write_page`. What is here knows arrays and text, and no task.
"""

from concerto_tf.report.page import about, render, write_page
from concerto_tf.report.parts import (
    Bars,
    CellMap,
    Code,
    Curve,
    Facts,
    Heat,
    Page,
    Part,
    Section,
    Table,
    Text,
    by_category,
    by_number,
)

__all__ = [
    "Bars",
    "CellMap",
    "Code",
    "Curve",
    "Facts",
    "Heat",
    "Page",
    "Part",
    "Section",
    "Table",
    "Text",
    "about",
    "by_category",
    "by_number",
    "render",
    "write_page",
]
