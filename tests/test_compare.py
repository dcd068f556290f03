"""The page that compares runs: its tables against the runs' own numbers, its tests against counting and integration."""

import itertools
import math
import os
import re

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given
from hypothesis import strategies as st
from pages import a_run, class_names, number, read_page, write_run

from dsb_jax.evaluation import compare, groups, paired, runs

NAN = float("nan")
FIRST, SECOND = class_names(2)
SHOTS = ("head", "middle", "tail")


def a_method(method, seed, *, num_classes=10, **settings):
    """A made-up run of a method; settings go into its config."""
    results, metrics, config = a_run(num_classes, seed=seed + 100 * sum(map(ord, method)))
    results |= {"method": method, "seed": seed, "top1": round(0.5 + 0.01 * len(method) + 0.03 * seed**2, 4)}
    results |= {shot: round(results["top1"] - 0.1 * i, 4) for i, shot in enumerate(SHOTS)}
    return results, metrics, {**config, "seed": seed, "subset_seed": None, **settings}


@pytest.fixture
def folders(tmp_path):
    """Writes runs ``{name: (results, metrics, config)}`` and returns their folders."""

    def write(made):
        return [write_run(tmp_path / name, *run) for name, run in made.items()]

    return write


@pytest.fixture
def without_plots(monkeypatch):
    """Drawing is most of a page's time."""
    monkeypatch.setattr(compare, "_by_class", lambda base, compared: {})
    monkeypatch.setattr(compare, "_training", lambda grouped: {})


def three_methods():
    made = {f"ce-{seed}": a_method("CE", seed) for seed in range(3)}
    made |= {f"dsb-{seed}": a_method("DSB-CE", seed, power=1.0) for seed in range(3)}
    return made | {f"dsb6-{seed}": a_method("DSB-CE", seed, power=6.0) for seed in range(2)}


def render(workdirs, path, **options):
    assert compare.write(workdirs, path, **options) == path
    return read_page(path)


def mean_and_deviation(cell):
    return [number(part) for part in cell.split(" ± ")]


def sentences(text):
    return re.findall(r"<li>(.*?)</li>", text)


def test_results_differences_and_settings_are_those_of_the_runs(folders, tmp_path):
    made = three_methods()
    text, page = render(folders(made), tmp_path / "pages" / "compare.html")
    assert page.text.count("8 runs on digits") == 2
    labels = {"ce": "CE", "dsb": "DSB-CE, power=1.0", "dsb6": "DSB-CE, power=6.0"}

    def column(name, key):
        return [100 * run[0][key] for folder, run in made.items() if folder.rpartition("-")[0] == name]

    summary, every = (table for table in page.tables[:2])
    for (name, label), row in zip(labels.items(), summary[1:], strict=True):
        assert row[:2] == [label, str(len(column(name, "top1")))]
        for cell, key in zip(row[2:6], ("top1", *SHOTS), strict=True):
            values = column(name, key)
            assert mean_and_deviation(cell) == pytest.approx([np.mean(values), np.std(values, ddof=1)], abs=0.051)
    for (folder, (results, _, _)), row in zip(made.items(), every[1:], strict=True):
        assert [row[0], row[1], row[-1]] == [labels[folder.rpartition("-")[0]], str(results["seed"]), folder]
        wanted = [100 * results[key] for key in ("top1", *SHOTS)]
        assert [number(cell) for cell in row[2:6]] == pytest.approx(wanted, abs=0.051)
        assert [number(cell) for cell in row[6:8]] == [0.1, 0.95]

    (difference,) = [table for table in page.tables if "pairs" in table[0]]
    for name, row in zip(("dsb", "dsb6"), difference[1:], strict=True):
        pairs = len(column(name, "top1"))
        differences = np.subtract(column(name, "top1"), column("ce", "top1")[:pairs])
        assert row[:2] == [labels[name], str(pairs)]
        assert mean_and_deviation(row[2]) == pytest.approx([differences.mean(), differences.std(ddof=1)], abs=0.051)

    assert page.table("folder")[0] == ["folder", "seed", "power"]
    assert page.table("folder")[1:] == [
        [folder, str(config["seed"]), str(config.get("power", ""))] for folder, (_, _, config) in made.items()
    ]
    assert len(page.all("svg")) == 4
    assert len(sentences(text)) == 2
    assert "The 2 comparisons are not corrected" in text


def test_each_class_is_compared_with_that_of_the_same_seed(folders, tmp_path):
    made = {"b-1": a_method("CE", 1), "a-1": a_method("LDAM", 1), "b-0": a_method("CE", 0), "a-0": a_method("LDAM", 0)}
    _, page = render(folders(made), tmp_path / "compare.html")
    head, *rows = page.table("class")
    assert head == ["class", "training samples", "CE (%)", "LDAM (points)"]
    assert [row[0] for row in rows] == class_names(10)
    for name, row in zip(class_names(10), rows, strict=True):
        accuracy = {folder: run[0]["per_class"][name]["accuracy"] for folder, run in made.items()}
        base = 100 * (accuracy["b-0"] + accuracy["b-1"]) / 2
        difference = 50 * (accuracy["a-0"] - accuracy["b-0"] + accuracy["a-1"] - accuracy["b-1"])
        assert [number(cell) for cell in row[2:]] == pytest.approx([base, difference], abs=0.051)


def test_bars_show_the_mean_and_the_spread_of_paired_differences(folders):
    made = {name: a_method(name[:-2], int(name[-1])) for name in ("CE-0", "CE-1", "LDAM-0", "LDAM-1")}
    loaded = [runs.load(folder) for folder in folders(made)]
    grouped = groups.group(loaded)
    figures = compare._by_class(grouped[0], groups.compare(grouped))
    ((caption, figure),) = figures.values()
    accuracy = {name: [c["accuracy"] for c in run[0]["per_class"].values()] for name, run in made.items()}
    pairs = 100 * np.array([np.subtract(accuracy[f"LDAM-{seed}"], accuracy[f"CE-{seed}"]) for seed in (0, 1)])
    bars = [100 * bar.get_width() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(bars, pairs.mean(axis=0), atol=1e-9)  # samples fall from class to class
    spread = [100 * np.ptp(segment[:, 0]) / 2 for segment in figure.axes[0].collections[0].get_segments()]
    np.testing.assert_allclose(spread, pairs.std(axis=0, ddof=1), atol=1e-9)
    assert "LDAM less that of CE" in caption


@pytest.mark.usefixtures("without_plots")
def test_classes_without_test_samples_and_absent_groups(folders, tmp_path):
    made = {"a": a_method("CE", 0), "b": a_method("LDAM", 0)}
    for results, metrics, _ in made.values():
        results["per_class"][FIRST]["accuracy"] = None
        results["correlations"]["scale"] = None
        del results["tail"]
        metrics.clear()
    text, page = render(folders(made), tmp_path / "compare.html")
    row = page.table("class")[1]
    assert row[2:] == ["–", "–"]
    results, differences = (table for table in page.tables if table[0][0] == "method")
    tail, r = results[0].index("tail (%)"), results[0].index("r with S")
    assert [(row[tail], row[r]) for row in results[1:]] == [("–", "–")] * 2
    assert differences[1][differences[0].index("tail")] == "–"
    assert "Of 9 classes" in text
    assert "nan" not in "".join(page.text).lower()


@pytest.mark.usefixtures("without_plots")
def test_methods_that_were_trained_longer_are_told(folders, tmp_path):
    made = {"ce": a_method("CE", 0), "crt": a_method("cRT-CE", 0)}
    stages = [{"method": "CE", "epochs": 20}, {"method": "cRT-CE", "epochs": 10}]
    made["ce"][0]["epochs"], made["crt"][0]["stages"] = 30, stages
    assert "different numbers of epochs" not in render(folders(made), tmp_path / "compare.html")[0]
    made["ce"][0]["epochs"] = 20
    text, _ = render(folders(made), tmp_path / "compare.html")
    assert "<b>Trained for different numbers of epochs</b>, in all their stages: CE 20, cRT-CE 20 + 10." in text


def test_a_comparison_of_one_class_with_no_metrics(folders, tmp_path):
    made = {name: a_method(name, 0, num_classes=1) for name in ("CE", "LDAM")}
    for _, metrics, _ in made.values():
        metrics.clear()
    text, page = render(folders(made), tmp_path / "compare.html")
    assert len(page.all("svg")) == 1
    assert "Of 1 classes" in text


def test_thousands_of_classes_make_no_large_page(folders, tmp_path):
    made = {name: a_method(name, 0, num_classes=2000) for name in ("CE", "LDAM")}
    text, page = render(folders(made), tmp_path / "compare.html")
    assert len(page.table("class")) == 2001
    assert len(text) < 1_000_000


@pytest.mark.usefixtures("without_plots")
def test_the_words_claim_what_the_numbers_bear(folders, tmp_path):
    made = {f"{method}-{seed}": a_method(method, seed) for method in ("CE", "LDAM") for seed in range(3)}
    gains = {0: 0.010, 1: 0.012, 2: 0.011}
    for seed, gain in gains.items():
        base, other = made[f"CE-{seed}"][0], made[f"LDAM-{seed}"][0]
        other["top1"] = base["top1"] + gain
        for i, name in enumerate(class_names(10)):
            base["per_class"][name]["accuracy"] = 0.5
            other["per_class"][name]["accuracy"] = 0.5 + 0.01 * i  # one stays, nine gain
    text, _ = render(folders(made), tmp_path / "compare.html")
    (sentence,) = sentences(text)
    t = np.mean(list(gains.values())) / (np.std(list(gains.values()), ddof=1) / math.sqrt(3))
    assert "top-1 +1.1 ± 0.1 points over 3 seeds" in sentence
    assert f"n = 3, p = {t_tail(t, 2):.3f}, chance alone is unlikely" in sentence
    assert "Of 10 classes, 9 gain and 0 lose" in sentence
    assert f"n = 9, p = {2 / 2**9:.3f}, chance alone is unlikely" in sentence
    assert "not corrected" not in text


@pytest.mark.usefixtures("without_plots")
def test_gains_and_losses_that_cancel_over_seeds_are_neither(folders, tmp_path):
    made = {f"{method}-{seed}": a_method(method, seed) for method in ("CE", "LDAM") for seed in range(3)}
    for seed, change in enumerate((0.1, -0.3, 0.2)):  # with rounding, they add up to 1e-17
        for i, name in enumerate(class_names(10)):
            made[f"CE-{seed}"][0]["per_class"][name]["accuracy"] = 0.5
            made[f"LDAM-{seed}"][0]["per_class"][name]["accuracy"] = 0.5 + (0.1 * (i + 1) if i < 3 else change)
    (sentence,) = sentences(render(folders(made), tmp_path / "compare.html")[0])
    assert "Of 10 classes, 3 gain and 0 lose" in sentence
    assert "n = 3, p = 0.250" in sentence


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"a": ("CE", 0), "b": ("LDAM", 0)}, "in one pair of runs. Of 10"),
        ({"a": ("CE", 0), "b": ("LDAM", 7)}, "no seed is shared, so that 1 against one run is no test over seeds"),
        ({"a": ("CE", 0), "b": ("LDAM", 0), "c": ("LDAM", 7)}, "in one pair of runs (1 of another seed left out)"),
        ({"a": ("CE", 0), "b": ("LDAM", 7), "c": ("LDAM", 8)}, "so that 2 against one run"),
    ],
)
def test_the_words_say_which_runs_are_paired(folders, tmp_path, made, said):
    text, _ = render(folders({name: a_method(*run) for name, run in made.items()}), tmp_path / "compare.html")
    assert said in sentences(text)[0]


@pytest.mark.usefixtures("without_plots")
def test_seeds_alone_are_summarised_and_not_compared(folders, tmp_path):
    text, page = render(folders({f"run-{seed}": a_method("CE", seed) for seed in range(3)}), tmp_path / "compare.html")
    assert "differ in their seeds alone" in text
    assert page.tables[0][1][:2] == ["CE", "3"]
    assert page.table("class")[0] == ["class", "training samples", "CE (%)"]


@pytest.mark.usefixtures("without_plots")
def test_equal_runs_have_no_p(folders, tmp_path):
    made = {f"{power}-{seed}": a_method("CE", seed, power=power) for power in (1, 2) for seed in range(2)}
    (sentence,) = sentences(render(folders(made), tmp_path / "compare.html")[0])
    assert "paired t-test over seeds: undefined (n = 2)" in sentence
    assert "0 gain and 0 lose; Wilcoxon signed-rank test over these: undefined (n = 0)" in sentence


def labels(folders, made, **options):
    return [group.label for group in groups.group([runs.load(folder) for folder in folders(made)], **options)]


def test_groups_are_named_by_what_sets_them_apart(folders):
    made = three_methods()
    assert labels(folders, made) == ["CE", "DSB-CE, power=1.0", "DSB-CE, power=6.0"]
    assert labels(folders, made, without_effect=["power"]) == ["CE", "DSB-CE", "DSB-CE (2)"]
    many = {f"run-{i}": a_method("CE", 0, a="x", b=i, c=(i, 1), d={"e": i, "f": 0}, g=i) for i in range(2)}
    assert labels(folders, many) == ["CE, b=0, c=[0, 1], d.e=0, …", "CE, b=1, c=[1, 1], d.e=1, …"]
    again = {f"run-{i}": a_method("CE", 0) for i in range(3)} | {"other": a_method("CE", 1)}
    assert labels(folders, again) == ["CE", "CE (2)", "CE (3)"]


def test_a_group_of_explicit_subsets_pairs_by_both_seeds(folders):
    made = {
        f"{method}-{subset}": a_method(method, 0, subset_seed=subset) for method in ("CE", "LDAM") for subset in (1, 2)
    }
    grouped = groups.group([runs.load(folder) for folder in folders(made)])
    (compared,) = groups.compare(grouped)
    assert [(run.path.name, base.path.name) for run, base in compared.pairs] == [("LDAM-1", "CE-1"), ("LDAM-2", "CE-2")]


@pytest.mark.usefixtures("without_plots")
def test_runs_that_cannot_be_compared_are_one_clear_error(folders, tmp_path):
    made = {"a": a_method("CE", 0), "b": a_method("LDAM", 0), "c": a_method("LDAM", 0, num_classes=9)}
    made["b"][0]["dataset"] = "mnist"
    a, b, c = folders(made)
    path = tmp_path / "compare.html"
    link = tmp_path / "link"
    os.symlink(a, link)
    for workdirs, message in (
        ([a, b], f"runs must be of one dataset, got 'digits' in {a} and 'mnist' in {b}"),
        ([a, c], f"runs must have the same classes, got 10 in {a} and 9 in {c}"),
        ([a], "a comparison needs two runs or more, got 1"),
        ([a, link], "a comparison needs different runs, got"),
        ([], "a comparison needs two runs or more, got 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            compare.write(workdirs, path)
    with pytest.raises(FileNotFoundError, match=r"nowhere/results.json is missing: the folder holds no finished run"):
        compare.write([a, tmp_path / "nowhere"], path)
    assert not path.exists()


@pytest.mark.usefixtures("without_plots")
def test_the_page_replaces_an_older_one_and_leaves_nothing_beside_it(folders, tmp_path):
    path = tmp_path / "pages" / "compare.html"
    workdirs = folders({"a": a_method("CE", 0), "b": a_method("LDAM", 0)})
    compare.write(workdirs, path)
    before = path.read_bytes()
    compare.write(workdirs, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# Statistics.


def t_tail(t, degrees):
    """The two-sided p of Student's t by integrating its density."""
    constant = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
    tail, _ = scipy.integrate.quad(lambda x: constant * (1 + x * x / degrees) ** (-(degrees + 1) / 2), abs(t), np.inf)
    return 2 * tail


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=2, max_size=12))
def test_the_t_test_integrates_students_density(differences):
    p = paired.t_test([*differences, NAN])
    if len(set(differences)) == 1:
        assert math.isnan(p)
    else:
        t = np.mean(differences) / (np.std(differences, ddof=1) / math.sqrt(len(differences)))
        assert p == pytest.approx(t_tail(t, len(differences) - 1), abs=1e-6)


@given(st.lists(st.integers(-(10**6), 10**6).filter(bool), min_size=1, max_size=10, unique_by=abs))
def test_wilcoxon_counts_all_signs(differences):
    ranks = {d: rank for rank, d in enumerate(sorted(differences, key=abs), start=1)}
    positive = sum(rank for d, rank in ranks.items() if d > 0)
    sums = [
        sum(r for r, s in zip(ranks.values(), signs, strict=True) if s)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    low, high = np.mean(np.array(sums) <= positive), np.mean(np.array(sums) >= positive)
    assert paired.wilcoxon([*differences, 0, NAN, 0]) == pytest.approx(min(1, 2 * min(low, high)), abs=1e-12)


@pytest.mark.parametrize("differences", [[], [0.1], [NAN, 0.2], [0.1] * 5, [0.0] * 4, [0.1 + 0.2, 0.3]])
def test_the_t_test_is_undefined_without_spread(differences):
    assert math.isnan(paired.t_test(differences))


@pytest.mark.parametrize("differences", [[], [0.0], [NAN, 0.0]])
def test_wilcoxon_is_undefined_where_nothing_differs(differences):
    assert math.isnan(paired.wilcoxon(differences))


@pytest.mark.parametrize("number", [3, 12, 60, 3000])
def test_wilcoxon_with_ties(number):
    assert paired.wilcoxon(np.full(number, 0.1)) <= 0.25
    assert paired.wilcoxon(np.tile([0.1, -0.1], number)) == pytest.approx(1)


@given(st.integers(1, 6), st.integers(1, 4), st.randoms(use_true_random=False))
def test_mean_and_deviation_of_what_is_finite(rows, columns, random):
    values = np.array([[random.choice([NAN, random.uniform(-1, 1)]) for _ in range(columns)] for _ in range(rows)])
    for column, mean, deviation in zip(values.T, paired.mean(values), paired.deviation(values), strict=True):
        finite = column[np.isfinite(column)]
        assert mean == pytest.approx(finite.mean() if len(finite) else NAN, nan_ok=True)
        assert deviation == pytest.approx(finite.std(ddof=1) if len(finite) > 1 else NAN, nan_ok=True, abs=1e-12)
