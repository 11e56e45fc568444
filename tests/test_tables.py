"""Tables of records, read back by other programs."""

import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuserec.errors import ConfigError
from diffuserec.tables import Estimate, format_facts, format_table

EVIL = "a|b & <i>c</i> $x_1^2$ 50% #{d} \\e ~f~ *g* `h` [i](j) \"k\" 'l' -- [red]m[/red]\x1b[31m"
RECORDS = [
    {"method": EVIL, "NDCG@10": Estimate(0.0548, 0.0021, "**", bold=True), "epochs": 1234},
    {"method": "plain", "NDCG@10": Estimate(-0.01234567), "seconds": 1234.5678, "epochs": None},
]
COLUMNS = ["method", "NDCG@10", "epochs", "seconds"]


class Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.rstrip("\n")


def markdown_rows(text):
    """Cells of a table as a reader of Markdown splits and unescapes them."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line] for line in lines]


def test_csv_has_all_digits_and_texts_as_they_are():
    head, first, second = csv.reader(io.StringIO(format_table(RECORDS, "csv")))
    assert head == ["method", "NDCG@10", "NDCG@10 ±", "epochs", "seconds"]
    assert first == [EVIL, "0.0548", "0.0021", "1234", ""]
    assert second == ["plain", "-0.01234567", "", "", "1234.5678"]


def test_html_is_read_back():
    page = Cells(format_table(RECORDS, "html", title=EVIL))
    shown = EVIL.replace("\x1b", "\\x1b")
    assert page.rows == [
        COLUMNS,
        [shown, "0.0548 ± 0.0021**", "1,234", ""],
        ["plain", "-0.0123", "", "1235"],
    ]
    assert set(page.tags) == {"table", "caption", "thead", "tbody", "tr", "th", "td", "strong"}
    assert page.tags.count("strong") == 1


def test_markdown_is_read_back():
    head, rule, first, second = markdown_rows(format_table(RECORDS, "markdown"))
    assert head == COLUMNS
    assert rule == ["---", "---:", "---:", "---:"]
    assert first == [EVIL.replace("\x1b", "\\x1b"), "**0.0548 ± 0.0021****", "1,234", ""]
    assert second == ["plain", "-0.0123", "", "1235"]


def test_latex_escapes_what_is_special():
    text = format_table(RECORDS, "latex", title="50 % & more")
    lines = text.splitlines()
    assert lines[:5] == [
        "\\begin{table}",
        "\\centering",
        "\\caption{50 \\% \\& more}",
        "\\begin{tabular}{lrrr}",
        "\\toprule",
    ]
    assert "plain & $-0.0123$ &  & 1235 \\\\" in lines
    evil = next(line for line in lines if line.startswith("a"))
    assert "\\textbf{0.0548} $\\pm$ 0.0021$^{**}$ & 1,234 &  \\\\" in evil
    name = evil.split(" & \\textbf")[0]
    assert name.startswith(
        "a\\textbar{}b \\& \\textless{}i\\textgreater{}c\\textless{}/i\\textgreater{} "
        "\\$x\\_1\\textasciicircum{}2\\$ 50\\% \\#\\{d\\} \\textbackslash{}e \\textasciitilde{}f"
    )
    assert "--" not in name
    bare = re.sub(r"\\(text[a-z]+\{\}|[&%$#_{}])|\{-\}", "", name)
    assert not set(bare) & set('\\&%$#_{}~^<>|`"')


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX here")
def test_latex_compiles(tmp_path):
    table = format_table(RECORDS, "latex")
    head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}"
    (tmp_path / "a.tex").write_text(f"{head}\\begin{{document}}{table}\\end{{document}}", "utf-8")
    subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )


def test_text_shows_markup_and_control_characters():
    text = format_table(RECORDS, title=EVIL)
    assert text.count(EVIL.replace("\x1b", "\\x1b")) == 2
    assert "\x1b" not in text
    assert re.search(r"│ plain +│ +-0\.0123 │ +│ +1235 │", text)
    lengths = {len(line) for line in text.splitlines()[1:]}
    assert len(lengths) == 1


def test_facts_are_names_beside_values():
    assert re.search(r"│ users +│ 1,234 │", format_facts({"users": 1234}, title="data"))
    page = Cells(format_facts({"<b>": EVIL, "n": 5}, "html", title="<i>"))
    assert page.rows == [["<b>", EVIL.replace("\x1b", "\\x1b")], ["n", "5"]]
    assert "b" not in page.tags


def test_unknown_formats_are_refused():
    with pytest.raises(ConfigError, match=r"no table format 'latx' \(did you mean 'latex'"):
        format_table(RECORDS, "latx")


TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_any_names_come_back(names):
    records = [{"method": name, "value": 1} for name in names]
    read = list(csv.reader(io.StringIO(format_table(records, "csv"), newline="")))[1:]
    assert [cell for cell, _ in read] == names
    shown = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in names]
    assert [row[0] for row in Cells(format_table(records, "html")).rows[1:]] == shown
    assert [row[0] for row in markdown_rows(format_table(records, "markdown"))[2:]] == [
        name.strip() for name in shown
    ]
    for line in format_table(records, "latex").splitlines()[4:-2]:
        bare = re.sub(r"\\(text[a-z]+\{\}|[&%$#_{}])|\{-\}|\$\\pm\$", "", line[: -len(" & 1 \\\\")])
        assert not set(bare) & set('\\&%$#_{}~^<>|`"')
