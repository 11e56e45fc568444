"""The report as one page: nothing missing, nothing from outside, nothing unescaped."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from diffuserec.evaluation import Evaluation, Protocol, Report, figures, group_means, rank_metrics
from diffuserec.evaluation.groups import history_groups
from diffuserec.reports.html import DrawnLists, Example, write_html
from diffuserec.training.loop import Epoch

EVIL = "<script>alert('x')</script>&\"]]>"
VOID = {"meta", "br", "hr", "img", "link", "input"}
SECTIONS = [
    "Accuracy on toy",
    "Accuracy by length of history on toy",
    "Accuracy by group on toy",
    "Training",
    "What the augmenter made up",
    "Beyond accuracy on toy",
    "How this was made",
]


class Page(HTMLParser):
    """Text, table cells and attributes of a page; fails where tags are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.headings, self.rows, self.text, self.svg_text = [], [], "", ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "h2" in self.open:
            self.headings[-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if "svg" in self.open:
            self.svg_text += data

    def values(self, name):
        return [value for _, given, value in self.attributes if given == name]


def result(shift, seed=0, dataset="toy", method="sasrec", n_users=400, beyond=True):
    base = np.random.default_rng(5)
    lengths = base.geometric(0.12, n_users) + 2
    ranks = base.integers(0, 60, n_users).astype(float)
    ranks = np.maximum(0, ranks + shift + np.random.default_rng(seed).integers(-1, 2, n_users))
    by_user = rank_metrics(ranks)
    per_user = pl.DataFrame(
        {
            "user": np.arange(n_users),
            "history_length": lengths,
            "history_group": history_groups(lengths),
            "popularity_group": np.resize(["head", "tail"], n_users),
            "target": np.ones(n_users, dtype=int),
            **by_user,
        }
    )
    lists = {"Coverage@10": 0.25 + shift / 1000, "Gini@10": 0.7, "Novelty@10": 9.5}
    return Evaluation(
        method=method,
        protocol=Protocol(
            dataset=dataset,
            split="leave-one-out, test",
            candidates="full",
            n_items=1234,
            filter_seen=True,
            ties="mid-rank",
            n_users=n_users,
            n_too_short=0,
            filters="5-core",
            max_len=50,
            seed=seed,
            repeat_share=0.0,
        ),
        metrics={n: float(v.mean()) for n, v in by_user.items()} | (lists if beyond else {}),
        groups=group_means(per_user, list(by_user)),
        per_user=per_user,
    )


def curve(n, phase="fit", valid=True):
    return [Epoch(phase, i, 5.0 / (i + 1), 0.1 * i if valid else None, 1.5) for i in range(n)]


def certain(confidence, disagreement=0.0, **kwargs):
    """100 users in tenths: of the ten users of tenth j, j are hits; entropy falls as j rises."""
    run = result(0, n_users=100, **kwargs)
    tenth = np.arange(100) // 10
    told = run.per_user.with_columns(
        target_rank=np.where(np.arange(100) % 10 < tenth, 9.5, 10.0),
        confidence=confidence(tenth / 10),
        entropy=2.0 - tenth / 10,
        disagreement=disagreement * (1 + tenth),
    )
    # the order of the file is not the order of certainty
    return replace(run, per_user=told.sample(fraction=1, shuffle=True, seed=0))


def write(path, report, title="A page", curves=None, examples=(), drawn=()):
    write_html(path, report, title=title, curves=curves or {}, examples=examples, drawn=drawn)
    text = path.read_text("utf-8")
    return text, Page(text)


REPORT = Report.of(
    {
        "sasrec": result(0),
        "sasrec + diffuasr": result(-8),
        "popularity": result(30, method="popularity"),
        "markov": result(6, method="markov"),
        "oracle": result(-20, method="oracle"),
    }
)
CURVES = {
    "sasrec": curve(4),
    "sasrec + diffuasr": [*curve(2, "diffusion", valid=False), *curve(3)],
}
EXAMPLES = [Example("u7", ["shampoo", "comb"], ["soap"], "towel")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("html") / "report.html", REPORT, "Four", CURVES, EXAMPLES)


def test_everything_stands_in_its_place(written):
    text, page = written
    assert page.headings == SECTIONS
    assert REPORT.protocol in page.text
    for word in ("u7", "shampoo", "comb", "soap", "towel", "diffusion: loss", "torch", "Python"):
        assert word in page.text
    assert "diffusion: validation" not in page.text  # that phase has none
    assert "best 0.3000 after epoch 4 of 4" in page.text
    assert "NaN" not in text
    assert "None" not in page.text


def test_every_number_of_the_table_is_the_report_s(written):
    _, page = written
    head, *rows = page.rows[:6]
    assert head == ["method", "HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20", "MRR"]
    for method, row in zip(REPORT.evaluations, rows, strict=True):
        assert row[0].startswith(method)
        for metric, cell in zip(head[1:], row[1:], strict=True):
            found = REPORT.summary.filter(method=method, group="all", metric=metric)
            stars = REPORT.stars(method, "toy", metric)
            assert cell == f"{found['value'][0]:.4f}{stars}± {found['margin'][0]:.4f}"
    assert "***" in rows[2][5]
    beyond = page.rows[-5:]
    assert beyond[1] == ["sasrec + diffuasr", "24.2%", "0.700", "9.50"]


def test_bold_is_the_best_that_competes(written):
    text, _ = written
    rows = text.split('<table class="main">')[1].split("</table>")[0].split("<tr>")[2:]
    assert [row.count('class="num best"') for row in rows] == [0, 7, 0, 0, 0]


def test_summary_says_what_won_and_how_surely(written):
    _, page = written
    found = REPORT.comparisons.filter(
        method="sasrec + diffuasr", metric="NDCG@10", group="all"
    ).row(0, named=True)
    ratio = found["ours"] / found["reference_value"]
    assert f"On toy, sasrec + diffuasr ranks best with NDCG@10 {found['ours']:.4f}" in page.text
    assert f"That is {ratio:.1f} times sasrec at" in page.text
    assert f"difference of {found['difference']:.4f} is significant" in page.text
    assert "It is " in page.text
    assert "markov (a floor, which needs no training)" in page.text
    assert "oracle, which knows how the data came about, marks the ceiling" in page.text
    assert "Users with short histories are served best by sasrec + diffuasr" in page.text


def test_a_floor_that_wins_is_said_to_win(tmp_path):
    report = Report.of({"sasrec": result(0, 1), "markov": result(0, 2, method="markov")})
    better = max(report.evaluations, key=lambda m: report.evaluations[m][0].metrics["NDCG@10"])
    _, page = write(tmp_path / "a.html", report)
    assert f"On toy, {better}" in page.text
    assert ("No trained method beats what costs nothing" in page.text) == (better == "markov")
    assert "may be chance" in page.text
    report = Report.of({"sasrec": result(9), "markov": result(0, method="markov")})
    _, page = write(tmp_path / "b.html", report)
    assert "On toy, markov (a floor, which needs no training) ranks best" in page.text
    assert "No trained method beats what costs nothing" in page.text


def test_needs_nothing_from_outside(written):
    text, page = written
    assert "http://" not in text
    assert "https://" not in text
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert page.values("src") == []
    assert all(value.startswith("#") for value in page.values("href"))
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_ids_are_unique_and_every_reference_has_its_target(written):
    text, page = written
    ids = page.values("id")
    assert len(ids) == len(set(ids)) > 10
    used = [value[1:] for value in page.values("href")] + re.findall(r"url\(#([^)]*)\)", text)
    assert used
    assert set(used) <= set(ids)


def test_figures_take_the_page_s_colors_and_say_what_they_are(written):
    text, page = written
    defined = set(re.findall(r"(--[a-z0-9]+):", text))
    assert set(re.findall(r"var\((--[a-z0-9]+)\)", text)) <= defined
    drawn = re.findall(r"<svg.*?</svg>", text, re.S)
    assert not any(re.search("#[0-9a-f]{6}\\b", svg) for svg in drawn)
    assert all('aria-label="' in svg or 'aria-hidden="true"' in svg for svg in drawn)
    assert page.tags.count("figcaption") == 3
    assert "NDCG@10" in page.svg_text


def test_what_comes_from_data_is_escaped(tmp_path):
    report = Report.of({EVIL: result(0, dataset=EVIL), f"b{EVIL}": result(-8, dataset=EVIL)})
    curves = {EVIL: curve(2, phase=EVIL)}
    examples = [Example(EVIL, [EVIL], [EVIL], EVIL)]
    text, page = write(tmp_path / "a.html", report, EVIL, curves, examples)
    assert "<script" not in text
    assert "script" not in page.tags
    assert page.rows[-5][0] == "user"
    assert page.rows[-4] == [EVIL] * 4
    labels = page.values("aria-label")
    assert f"loss by epoch of phase {EVIL}" in labels
    assert f"Accuracy on {EVIL}" in labels


def test_names_that_look_like_markup_of_other_kinds_stay_as_they_are(tmp_path):
    names = ["$x$ {{ title }} #0a0a06 -1", "%s {0} \\frac"]
    report = Report.of({names[0]: result(0), names[1]: result(-8)})
    _, page = write(tmp_path / "a.html", report, title="$y$ - {% if %}")
    assert "$y$ - {% if %}" in page.text
    assert page.rows[1][0].startswith(names[0])
    assert page.rows[2][0].startswith(names[1])


def test_the_same_input_gives_the_same_bytes(tmp_path, written):
    text, _ = written
    assert write(tmp_path / "again.html", REPORT, "Four", CURVES, EXAMPLES)[0] == text
    assert [file.name for file in tmp_path.iterdir()] == ["again.html"]


def test_one_method_alone_leaves_nothing_empty(tmp_path):
    report = Report.of({"only": result(0, dataset=None, n_users=3, beyond=False)})
    text, page = write(tmp_path / "new" / "a.html", report)
    assert page.headings == [
        "Accuracy",
        "Accuracy by length of history",
        "Accuracy by group",
        "How this was made",
    ]
    assert "there is nothing to compare it with" in page.text
    assert "only reaches NDCG@10" in page.text
    assert "best" not in page.text
    assert "Stars" not in page.text
    assert "None" not in page.text
    assert 'class="num best"' not in text


def test_several_data_sets_and_seeds(tmp_path):
    report = Report.of(
        {
            "one": [result(0, 0), result(0, 1), result(2, dataset="other")],
            "two": [result(-9, 0), result(-9, 1), result(-9, dataset="other")],
        }
    )
    text, page = write(tmp_path / "a.html", report)
    assert page.headings[:6] == [
        f"{heading} on {dataset}"
        for heading in ("Accuracy", "Accuracy by length of history", "Accuracy by group")
        for dataset in ("toy", "other")
    ]
    assert "averaged over 2 seeds" in page.text
    assert "over seeds p " in page.text
    assert "0, 1 (one, two)" in page.text
    spread = report.summary.filter(method="two", dataset="toy", group="all", metric="MRR")
    assert page.rows[2][-1].endswith(f"sd {spread['seed_std'][0]:.4f}")
    assert "sd" not in page.rows[5][-1]
    assert len(page.values("id")) == len(set(page.values("id")))
    assert text.count('<p class="protocol">') == 2


def test_lengths_without_users_make_no_empty_bins(tmp_path):
    gaps = result(0)
    lengths = np.where(np.arange(400) % 2, 3, 700)
    both = [
        Evaluation(
            run.method,
            run.protocol,
            run.metrics,
            run.groups,
            run.per_user.with_columns(history_length=lengths),
        )
        for run in (gaps, result(-3))
    ]
    _, page = write(tmp_path / "a.html", Report.of(dict(zip("ab", both, strict=True))))
    assert "nan" not in page.text
    assert "Shortest histories (3, 50% of users)" in page.text
    assert "Longest histories (4–700, 50% of users)" in page.text
    assert re.search(r"That is \d+\.\d% more than a at", page.text)


def test_certainty_is_held_against_accuracy(tmp_path):
    report = Report.of(
        {
            "humble": certain(lambda rate: rate + 0.05),
            "proud": certain(lambda rate: rate / 10 + 0.9, disagreement=0.1),
            "silent": result(0, n_users=100),
        }
    )
    text, page = write(tmp_path / "a.html", report)
    assert "Does certainty mean accuracy? on toy" in page.headings
    section = text.split("Does certainty mean accuracy?")[1].split("</section>")[0]
    assert re.findall("<h3>([^<]*)</h3>", section) == [
        "Calibration",
        "By entropy",
        "By disagreement",
    ]
    assert "silent" not in section
    # proud states .90, .91, ... .99 where 0, .1, ... .9 came true: .945 - .45 too much on average
    assert "Expected calibration error: humble 0.0500; proud 0.4950." in section
    assert "humble 0.9000 and 0.0000; proud 0.9000 and 0.0000" in section
    assert "Of several seeds" not in section
    assert len(page.values("id")) == len(set(page.values("id")))


def test_of_several_seeds_the_first_tells_its_certainty_and_no_draws_cannot_disagree(tmp_path):
    runs = [certain(lambda rate: rate + 0.05), certain(lambda rate: rate + 0.07, seed=1)]
    text, _ = write(tmp_path / "a.html", Report.of({"a": runs}))
    assert "Expected calibration error: a 0.0500." in text.replace("\n", " ")
    assert "Of several seeds the first is drawn" in text
    assert "<h3>By entropy</h3>" in text
    assert "isagreement" not in text


@pytest.mark.parametrize("what", ["sampled candidates", "lists of 20", "few users"])
def test_certainty_that_cannot_be_held_against_hits_is_not_shown(tmp_path, what):
    run = certain(lambda rate: rate)
    if what == "sampled candidates":
        run = replace(run, protocol=replace(run.protocol, candidates="uniform:100"))
    elif what == "lists of 20":
        run = replace(run, metrics={n.replace("e@10", "e@20"): v for n, v in run.metrics.items()})
    else:
        run = replace(run, per_user=run.per_user.head(99))
    _, page = write(tmp_path / "a.html", Report.of({"a": run}))
    assert not any("certainty" in heading for heading in page.headings)


def test_lists_of_single_draws_stand_beside_their_average(tmp_path):
    shown = DrawnLists(
        "diffrec",
        "u7",
        ["soap"],
        "towel",
        {"average": ["comb", "towel"], "seed 0": ["towel", "brush"], "seed 1": ["comb", "brush"]},
    )
    text, page = write(tmp_path / "a.html", REPORT, examples=EXAMPLES, drawn=[shown, shown])
    assert page.headings[-3] == "What one draw of noise shows, and the average of several"
    head, lists = page.rows[-8:-6]
    assert head == [
        "averagenext item at place 2",
        "seed 0next item at place 1",
        "seed 1next item not shown",
    ]
    assert lists == ["combtowel", "towelbrush", "combbrush"]
    section = text.split("What one draw")[1].split("</section>")[0]
    assert section.count("diffrec, u7</h3>") == 2
    assert section.count('<li class="next"><b>towel</b></li>') == 2 * 3  # came next, and two lists
    assert re.findall('<li class="apart">([^<]*)<', section) == ["brush"] * 4
    assert section.count("<li>comb</li>") == 2 * 2


def test_lists_of_draws_are_escaped(tmp_path):
    shown = DrawnLists(EVIL, EVIL, [EVIL], EVIL, {EVIL: [EVIL, "a"], "b": [f"c{EVIL}"]})
    text, page = write(tmp_path / "a.html", REPORT, drawn=[shown])
    assert "<script" not in text
    assert (
        page.text.count(EVIL) == 7
    )  # method, user, history, target, name of the list and two items
    assert f"Lists for {EVIL}" in page.values("aria-label")


@pytest.mark.parametrize("module", [write_html.__code__.co_filename, figures.__file__])
def test_importing_it_does_not_import_matplotlib(module):
    source = Path(module).read_text()
    outside = re.sub(r"if TYPE_CHECKING:\n(    .*\n)+", "", source)
    assert not re.search(r"^(import|from) matplotlib", outside, re.M)
