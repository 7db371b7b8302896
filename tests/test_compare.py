"""Comparisons: known differences are found, intervals and tests are right, runs that are not comparable are refused."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from timecycle.errors import InputError
from timecycle.evaluation.comparison import paired
from timecycle.evaluation.comparison.compare import compare
from timecycle.evaluation.comparison.paired import mean_difference, sign_test
from timecycle.evaluation.comparison.paper import comma_separated, latex, markdown
from timecycle.evaluation.davis.metrics import statistics
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS, ObjectScores, Scores

NAMES = ["a", "b", "c", "d", "e", "f"]


def one_object(jaccard: np.ndarray, boundary: np.ndarray, absent: bool = False) -> ObjectScores:
    return ObjectScores(jaccard, boundary, statistics(jaccard), statistics(boundary), absent)


def made(seed: int = 0, objects: tuple[int, ...] = (1, 3, 2, 1, 4, 1), frames: int = 9) -> Scores:
    """Random scores of sequences with these numbers of objects."""
    rng = np.random.default_rng(seed)
    sequences = {
        name: tuple(one_object(rng.random(frames), rng.random(frames)) for _ in range(count))
        for name, count in zip(NAMES, objects, strict=True)
    }
    return Scores(sequences, {name: tuple(f"{index:05d}.png" for index in range(1, frames + 1)) for name in sequences})


def changed(scores: Scores, sequence: str, objects: tuple[ObjectScores, ...]) -> Scores:
    return Scores(scores.sequences | {sequence: objects}, scores.files)


# Statistics


def test_an_interval_is_that_of_a_direct_bootstrap():
    """Sequences are drawn one by one, and their objects put together; the levels are SciPy's."""
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 5, 12)
    groups = [rng.normal(rng.normal(0.03, 0.06), 0.04, size) for size in sizes]
    clusters = np.repeat(np.arange(12) * 7, sizes)
    found = mean_difference(np.concatenate(groups), clusters)
    means = []
    for _ in range(10_000):
        drawn = [groups[index] for index in rng.integers(0, 12, 12)]
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    level = stats.norm.cdf(-math.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    low, high = np.quantile(means, [level, 1 - level])
    assert found.mean == pytest.approx(np.concatenate(groups).mean())
    assert (found.objects, found.sequences) == (sizes.sum(), 12)
    assert abs(found.low - low) < 0.05 * (high - low)
    assert abs(found.high - high) < 0.05 * (high - low)


@pytest.mark.parametrize("sequences", [8, 30])
def test_about_95_of_100_intervals_hold_the_true_mean(sequences):
    rng = np.random.default_rng(sequences)
    clusters = np.repeat(np.arange(sequences), np.resize([1, 4, 2, 1, 3], sequences))
    inside = narrow = 0
    for _ in range(400):
        values = 0.02 + rng.normal(0, 0.05, sequences)[clusters] + rng.normal(0, 0.02, len(clusters))
        found = mean_difference(values, clusters)
        inside += found.low <= 0.02 <= found.high
        alone = mean_difference(values, np.arange(len(values)))
        narrow += alone.low <= 0.02 <= alone.high
    assert 0.92 < inside / 400 < 0.98
    assert narrow / 400 < 0.9  # as if the objects of a sequence were independent


def test_an_interval_needs_five_sequences():
    values = np.arange(6) / 10
    assert math.isnan(mean_difference(values, np.array([0, 1, 2, 3, 3, 3])).low)
    assert mean_difference(values, np.array([0, 1, 2, 3, 4, 4])).low > 0
    none = mean_difference(values[:0], np.zeros(0, int))
    assert math.isnan(none.mean)
    assert none[3:] == (0, 0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 29, 120])
def test_quantiles_of_student_are_scipys(degrees):
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    assert paired._student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-7)


@pytest.mark.parametrize(("better", "worse"), [(0, 1), (3, 4), (5, 5), (10, 2), (0, 30), (41, 20), (700, 600)])
def test_the_sign_test_is_scipys(better, worse):
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    found = sign_test(np.array([0.1] * better + [-0.3] * worse + [0.0] * 4))
    assert found[:3] == (better, worse, 4)
    assert found.p == pytest.approx(stats.binomtest(better, better + worse).pvalue, rel=1e-9)


# Comparisons of scores


def test_the_same_scores_differ_by_exactly_nothing():
    found = compare([made(), made()], ["one", "two"])
    (versus,) = found.versus
    for name in ("J&F", "J", "F"):
        assert versus.measures[name] == (0, 0, 0, 12, 6)
        assert versus.signs[name] == (0, 0, 6, 1)
    assert {one.difference for one in versus.objects} == {0}
    assert "most in" not in str(found)


def test_differences_are_those_of_the_means():
    first, second = made(0), made(1)
    found = compare([first, second])
    (versus,) = found.versus
    for name, column in (("J&F", "J&F-Mean"), ("J", "J-Mean"), ("F", "F-Mean")):
        assert versus.measures[name].mean == pytest.approx(second.global_[column] - first.global_[column], abs=1e-12)
    for sequence in versus.sequences:
        rows = [scores.by_sequence[sequence.name]["J&F-Mean"] for scores in (first, second)]
        assert sequence.means == pytest.approx(rows)
        assert sequence.difference == pytest.approx(rows[1] - rows[0])
    assert f"{versus.measures['J&F'].mean:+.3f}" in str(found)
    assert repr(compare([first, second])) == repr(found)  # the seed is fixed


def test_a_changed_sequence_is_found_first_and_with_its_frame():
    first = made()
    old = first.sequences["e"]
    jaccard = old[2].jaccard.copy()
    jaccard[4] -= 0.4
    jaccard[6] += 0.1
    worse = (*old[:2], one_object(jaccard, old[2].boundary), old[3])
    (versus,) = compare([first, changed(first, "e", worse)], ["one", "two"]).versus
    assert (versus.objects[0].sequence, versus.objects[0].object_id) == ("e", 3)
    assert versus.objects[0].difference == pytest.approx(-0.3 / 9 / 2)
    assert versus.objects[0].frame == (4, "00005.png", pytest.approx(-0.2))
    assert versus.sequences[0].name == "e"
    assert [one.difference for one in versus.objects[1:]] == [0] * 11
    assert versus.signs["J&F"] == (0, 1, 5, 1)
    assert versus.measures["J&F"].low < versus.measures["J&F"].mean < versus.measures["J&F"].high == 0


def test_objects_that_one_run_does_not_score_are_left_out_and_named():
    first = made()
    gone = ObjectScores(np.ones(9), np.ones(9), statistics(np.ones(9)), statistics(np.ones(9)), True)
    second = changed(first, "c", (first.sequences["c"][0], gone))
    found = compare([first, second], ["one", "two"])
    assert found.versus[0].measures["J&F"].objects == 11
    assert "1 object is scored in only one of the baseline and two, and left out of the differences: c 2" in str(found)


def test_each_run_is_compared_with_the_first():
    runs = [made(0), made(1), made(2)]
    found = compare(runs, ["one", "two", "three"])
    assert [(one.baseline, one.name) for one in found.versus] == [("one", "two"), ("one", "three")]
    alone = compare([runs[0], runs[2]], ["one", "three"]).versus[0]
    assert found.versus[1].measures == alone.measures


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: Scores({k: v for k, v in s.sequences.items() if k != "b"}, s.files),
            "two lacks b; expected the same",
        ),
        (lambda s: Scores(s.sequences, s.files | {"c": ("x.png", *s.files["c"][1:])}), "differ in c: frames 00001.png"),
        (lambda s: made(frames=8), "differ in a: 9 and 8 scored frames"),
    ],
)
def test_scores_of_other_frames_are_refused(change: Callable[[Scores], Scores], words):
    with pytest.raises(InputError, match=words):
        compare([made(), change(made())], ["one", "two"])


def test_arguments_are_checked():
    with pytest.raises(InputError, match="1 run to compare; expected at least two"):
        compare([made()])
    with pytest.raises(InputError, match="the names of 2 runs are x, x; expected as many, all different"):
        compare([made(), made()], ["x", "x"])
    with pytest.raises(InputError, match="sequence z is not in run 1; expected some of a, b, c, d, e, f"):
        compare([made(), made()], sequences=["z"])


# Tables for a paper


def constant(value: float, later: float) -> Scores:
    """One object whose J and F are `value` in the first half, and `later` in the second."""
    values = np.repeat([value, later], 4)
    return Scores({"a": (one_object(values, values),)})


def test_the_best_of_each_column_is_in_bold_and_names_are_escaped():
    runs = [constant(0.9, 0.8), constant(0.9, 0.8), constant(0.7, 0.7), Scores({"a": ()})]
    names = ["A_1 & B", "50% #2", r"{x}^~\|", "none"]
    rows = [line for line in latex(names, runs).split("\n") if line.endswith(r"\\") and "mathcal" not in line]
    assert rows[0] == (
        r"A\_1 \& B & \textbf{85.0} & \textbf{85.0} & \textbf{100.0} & 10.0 & \textbf{85.0} & \textbf{100.0} & 10.0 \\"
    )
    assert rows[1].startswith(r"50\% \#2 & \textbf{85.0}")
    assert rows[2] == (
        r"\{x\}\textasciicircum{}\textasciitilde{}\textbackslash{}| & 70.0 & 70.0 & \textbf{100.0} & \textbf{0.0} & "
        r"70.0 & \textbf{100.0} & \textbf{0.0} \\"
    )
    assert rows[3] == "none & " + " & ".join(["-"] * 7) + r" \\"
    assert comma_separated(names, runs).split("\n")[0] == "Method," + ",".join(GLOBAL_COLUMNS)
    assert comma_separated(names, runs).split("\n")[2:4:1][0] == "50% #2,85.0,85.0,100.0,10.0,85.0,100.0,10.0"
    assert comma_separated(names, runs).endswith("none,,,,,,,")


def test_latex_is_balanced():
    text = latex([r"a{b", r"c\d", "e$f"], [made(0), made(1), made(2)])
    bare = re.sub(r"\\[\\{}$&#_%]", "", text)
    assert bare.count("{") == bare.count("}")
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert bare.count("$") % 2 == 0
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    for row in filter(None, body.strip().split("\n")):
        assert len(re.findall(r"(?<!\\)&", row)) == 7
        assert row.endswith(r" \\")


def test_markdown_becomes_a_table():
    parser = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    names = ["a|b_c_", "*x* <i>"]
    html = parser.MarkdownIt("commonmark").enable("table").render(markdown(names, [made(0), made(1)]))
    assert re.findall(r"<td>(.*?)</td>", html)[0] == "a|b_c_"
    assert "<td>*x* &lt;i&gt;</td>" in html
    assert html.count("<tr>") == 3
    assert html.count("<th") == 8 + html.count("<thead")
    assert html.count("<strong>") >= 7
