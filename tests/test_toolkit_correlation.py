"""What class accuracy goes with, against SciPy and the numbers of a run's own results; and tables that people write."""

import dataclasses
import re
import warnings

import numpy as np
import pages
import pytest
import scipy.stats

import dsb_jax
from dsb_jax.evaluation import metrics
from dsb_jax.toolkit import class_tables, correlation, findings, points, spaces
from dsb_jax.toolkit.correlation import Coefficient, Correlations, Measure


def some_points(sizes, dim=4, seed=0, offset=0.0):
    """Classes of which each spans more than the one before."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = rng.normal(size=(len(labels), dim)) * (0.5 + labels[:, None]) + rng.normal(size=(len(sizes), dim))[labels]
    return points.of(rows + offset, labels, [f"class {i}" for i in range(len(sizes))], name="made up")


SIZES = [40, 35, 30, 28, 20, 17, 13, 9, 6, 4]
ACCURACY = np.array([0.7, 0.75, 0.72, 0.9, 0.85, 0.8, 0.95, 0.6, 0.99, 0.92])


def values(found, symbol, kind="pearson"):
    return [each.value for m, each in zip(found.measures, getattr(found, kind), strict=True) if m.symbol == symbol]


@pytest.mark.parametrize("unknown", [(), (2, 7)])
def test_coefficients_are_those_of_a_runs_results(unknown):
    accuracy, of_classes = ACCURACY.copy(), some_points(SIZES)
    accuracy[list(unknown)] = np.nan
    found = correlation.correlate(accuracy, of_classes, resamples=9)
    features, labels = of_classes.points.astype(np.float32), of_classes.labels
    space = {
        "volumes": np.asarray(dsb_jax.class_volumes(features, labels, 10)),
        "centers": np.asarray(dsb_jax.class_centers(features, labels, 10)),
    }
    wanted = metrics.correlations_by_alpha(accuracy, **space, present=np.ones(10, bool))
    assert values(found, "S'") == pytest.approx([wanted["volume"]], abs=1e-5)
    assert values(found, "W") == pytest.approx(list(wanted["interclass"].values()), abs=1e-5)
    assert values(found, "S") == pytest.approx(list(wanted["scale"].values()), abs=1e-5)
    assert values(found, "N") == [pytest.approx(metrics.pearson(accuracy, SIZES))]
    number = dsb_jax.effective_number(np.array(SIZES))
    assert values(found, "E_n") == [pytest.approx(metrics.pearson(accuracy, number), abs=1e-6)]
    known = np.isfinite(accuracy)
    for measure, rho in zip(found.measures, found.spearman, strict=True):
        wanted = scipy.stats.spearmanr(accuracy[known], measure.values[known]).statistic
        assert rho.value == pytest.approx(wanted)
    assert found.number == 10 - len(unknown)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_intervals_are_scipys_bca_of_its_own_coefficients(kind):
    found = correlation.correlate(ACCURACY, some_points(SIZES), alphas=[2], resamples=300, confidence=0.9, seed=3)
    statistic = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}[kind]
    for measure, coefficient in zip(found.measures, getattr(found, kind), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
            wanted = scipy.stats.bootstrap(
                (ACCURACY, measure.values),
                lambda x, y: statistic(x, y).statistic,
                paired=True,
                vectorized=False,
                n_resamples=300,
                confidence_level=0.9,
                rng=np.random.default_rng(3),
            )
        np.testing.assert_allclose(coefficient[1:3], wanted.confidence_interval, rtol=1e-9)
        np.testing.assert_allclose(coefficient.resampled, wanted.bootstrap_distribution, rtol=1e-9, atol=1e-12)


def test_measures_are_compared_on_the_same_resamples():
    found = correlation.correlate(ACCURACY, some_points(SIZES), alphas=[1, 2], resamples=500)
    samples, scale = found.pearson[0], found.pearson[-1]
    assert found.ahead(len(found.pearson) - 1, 0) == np.mean(np.abs(scale.resampled) > np.abs(samples.resampled))
    assert found.ahead(0, 0) == 0


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of 30 classes with a normal accuracy and measure, r = 0.6."""
    rng, held, options = np.random.default_rng(0), 0, {"resamples": 400, "confidence": 0.9, "seed": 0}
    for _ in range(300):
        x, noise = rng.normal(size=(2, 30))
        r = correlation._coefficient(x, 0.6 * x + 0.8 * noise, correlation._pearson, **options)
        held += r.low <= 0.6 <= r.high
    assert 0.84 < held / 300 < 0.95


def test_equal_numbers_of_samples_have_no_coefficient():
    found = correlation.correlate(ACCURACY, some_points([12] * 10), resamples=50)
    for coefficients in (found.pearson, found.spearman):
        assert all(np.isnan(each[:3]).all() and not len(each.resampled) for each in coefficients[:2])
    assert "The number of samples is the same in all classes and tells nothing." in found.reading()
    assert found.table()[1][0] == ["N", "", "", "", "", "", "", ""]
    assert found.figures()["correlations"][1].axes[0].texts[0].get_text() == "undefined"


@pytest.mark.parametrize("value", [0.1, 7e5])
def test_a_constant_is_one_whatever_its_digits(value):
    assert np.isnan(correlation._pearson(np.full(10, value), ACCURACY))
    assert np.isnan(correlation._spearman(np.full(10, value), ACCURACY))


def test_few_classes_have_no_interval_and_two_no_coefficient():
    found = correlation.correlate(ACCURACY[:7], some_points(SIZES[:7]))
    assert np.isfinite([each.value for each in found.pearson]).all()
    assert np.isnan([each[1:3] for each in found.pearson]).all()
    assert "give no interval" in found.reading()
    found = correlation.correlate(ACCURACY[:2], some_points(SIZES[:2]))
    assert np.isnan([each.value for each in (*found.pearson, *found.spearman)]).all()
    assert found.reading().startswith("Nothing can be said of 2 classes")
    found.figures()
    findings.to_json(found.as_dict())


def test_all_resamples_may_agree():
    accuracy = np.linspace(0.1, 0.9, 10)
    found = correlation.correlate(accuracy, some_points(np.arange(5, 55, 5)), alphas=[1], resamples=50)
    assert found.spearman[0][:3] == (pytest.approx(1), pytest.approx(1), pytest.approx(1))


TIED = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.8, 0.9])


def test_resamples_of_ties_alone_do_not_take_the_interval_of_the_others():
    """The BCa interval by hand (Efron & Tibshirani, 1993, Sec. 14.3) of those that have a coefficient."""
    x = np.array([1.0, 3.0, 2.0, 2.5, 1.5, 2.2, 4.0, 4.2])
    found = correlation._coefficient(TIED, x, correlation._pearson, resamples=500, confidence=0.9, seed=0)
    defined = found.resampled[np.isfinite(found.resampled)]
    assert 400 < len(defined) < 500
    normal, left_out = scipy.stats.norm, [np.delete(np.arange(8), place) for place in range(8)]
    bias = normal.ppf((np.sum(defined < found.value) + np.sum(defined <= found.value)) / 2 / len(defined))
    jack = np.array([np.corrcoef(TIED[rows], x[rows])[0, 1] for rows in left_out])
    apart = jack.mean() - jack
    acceleration = np.sum(apart**3) / (6 * np.sum(apart**2) ** 1.5)
    shifted = bias + normal.ppf([0.05, 0.95])
    wanted = np.percentile(defined, 100 * normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    np.testing.assert_allclose(found[1:3], wanted, rtol=1e-9)
    assert found.low < found.value - 0.1


def test_too_few_resamples_with_a_coefficient_give_no_interval():
    tied = np.array([0.5] * 7 + [0.9])
    x = np.array([1.0, 3.0, 2.0, 2.5, 1.5, 2.2, 4.0, 4.2])
    found = correlation._coefficient(tied, x, correlation._pearson, resamples=200, confidence=0.9, seed=0)
    assert np.isfinite(found.value)
    assert np.isnan(found[1:3]).all()
    assert not len(found.resampled)


def test_measures_are_compared_where_both_have_a_coefficient():
    found = made_up([0.4, 0.5, 0.8])
    base, last = found.pearson[0], found.pearson[-1]._replace(resampled=np.array([np.nan, 1.0, -1.0, 0.1]))
    base = base._replace(resampled=np.array([0.5, 0.5, 0.5, np.nan]))
    found = dataclasses.replace(found, pearson=(base, found.pearson[1], last))
    assert found.ahead(2, 0) == 1
    undefined = base._replace(resampled=np.full(4, np.nan))
    assert np.isnan(dataclasses.replace(found, pearson=(undefined, found.pearson[1], last)).ahead(2, 0))


def test_accuracy_may_go_with_a_measure_by_falling():
    """As of N, exactly, here."""
    sizes = np.array(SIZES)
    found = correlation.correlate(1 - sizes / 50, some_points(SIZES), alphas=[1], resamples=50)
    assert found.pearson[0].value == pytest.approx(-1)
    assert found.best == 0
    assert found.reading().startswith(
        "Over 10 classes accuracy goes most closely with the number of samples, and falls with it: r = −1.00"
    )
    falling = dataclasses.replace(
        found,
        measures=(*found.measures, Measure("S", 2.0, found.measures[-1].values)),
        pearson=(*found.pearson[:-1], Coefficient(-0.9, -1, -0.5, np.empty(0)), Coefficient(0.2, 0, 1, np.empty(0))),
    )
    assert falling.measures[falling.best_scale].alpha == 1.0


def test_a_class_without_samples_is_left_out():
    found = correlation.correlate([*ACCURACY, 0.5], some_points([*SIZES, 0]), alphas=[1], resamples=20)
    wanted = correlation.correlate(ACCURACY, some_points(SIZES), alphas=[1], resamples=20)
    assert found.number == 10
    assert all(np.isnan(measure.values[10]) for measure in found.measures)
    for one, other in zip(found.pearson, wanted.pearson, strict=True):
        np.testing.assert_allclose(one.value, other.value, rtol=1e-6)


def test_an_offset_leaves_the_digits_to_what_differs():
    near, far = (spaces.space(some_points(SIZES, offset=offset)) for offset in (0.0, 1e7))
    np.testing.assert_allclose(far["volumes"], near["volumes"], rtol=1e-5)
    np.testing.assert_allclose(far["centers"], near["centers"], atol=1e-5)


def made_up(values, intervals=None, accuracy=ACCURACY, share=1.0):
    """Three measures with these r, of which the last is ahead of the first in a share of the resamples."""
    intervals = intervals or [(0.1, 0.9)] * 3
    known = (Measure("N", None, np.array(SIZES)), Measure("S'", None, ACCURACY), Measure("S", 1.5, ACCURACY))
    base = np.zeros(100)
    resampled = [base, base, np.where(np.arange(100) < 100 * share, 1.0, 0.0)]
    pearson = tuple(Coefficient(v, *i, r) for v, i, r in zip(values, intervals, resampled, strict=True))
    return Correlations(known, pearson, pearson, accuracy, tuple("abcdefghij"), 0.95, "made up")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (made_up([0.4, 0.5, 0.8]), "most closely with the semantic scale S at α = 1.5: r = 0.80, in 95% of resampled"),
        (
            made_up([0.4, 0.5, 0.8]),
            "With the semantic scale S at α = 1.5 r = 0.80, with the number of samples r = 0.40: the scale is ahead in "
            "100% of the resamples.",
        ),
        (made_up([0.4, 0.5, 0.8], share=0.9), "ahead in 90% of the resamples, which does not tell them apart."),
        (made_up([0.9, 0.5, 0.8], share=0.02), "ahead in 2% of the resamples."),
        (made_up([0.4, 0.5, 0.8], [(-0.1, 0.9)] * 3), "classes −0.10 to 0.90, so that it may be none at all."),
        (
            made_up([0.9, 0.5, 0.8]),
            "most closely with the number of samples: r = 0.90, in 95% of resampled classes 0.10",
        ),
        (made_up([-0.9, 0.1, 0.3]), "most closely with the number of samples, and falls with it: r = −0.90, in 95% of"),
        (made_up([-0.9, 0.1, 0.3]), "number of samples r = −0.90: the scale is ahead by |r| in 100% of the resamples."),
        (made_up([np.nan] * 3), "Nothing can be said of 10 classes"),
    ],
)
def test_readings_say_how_sure_they_are(found, words):
    assert words in found.reading()


def test_the_table_is_the_papers():
    found = correlation.correlate(ACCURACY, some_points(SIZES), resamples=20)
    headings, rows = found.table()
    assert [row[:2] for row in rows] == [
        ["N", ""],
        ["E_n", ""],
        *[["W", alpha] for alpha in ("1", "1.5", "2", "2.5", "3")],
        ["S'", ""],
        *[["S", alpha] for alpha in ("1", "1.5", "2", "2.5", "3")],
    ]
    assert {len(row) for row in rows} == {len(headings)}
    assert float(rows[0][2]) == pytest.approx(found.pearson[0].value, abs=1e-4)
    content = found.as_dict()
    assert content["classes"]["class 3"]["accuracy"] == 0.9
    assert content["correlations"][-1]["alpha"] == 3.0
    findings.to_json(content)


def test_figures_show_every_measure_and_the_scale_that_follows_best():
    found = correlation.correlate(ACCURACY, some_points(SIZES), resamples=50)
    figures = found.figures()
    (axes,) = figures["correlations"][1].axes
    assert len(axes.get_yticks()) == 13
    r, rho = (line for line in axes.lines if line.get_label().startswith(("Pearson", "Spearman")))
    np.testing.assert_allclose(r.get_xdata(), [each.value for each in found.pearson])
    np.testing.assert_allclose(rho.get_xdata(), [each.value for each in found.spearman])
    lines = np.array(axes.collections[0].get_segments())[:, :, 0]
    np.testing.assert_allclose(lines, [each[1:3] for each in found.pearson])
    best = max(range(8, 13), key=lambda place: found.pearson[place].value)
    assert "; α is the best of several for these very classes." in found.reading()
    assert f"α = {found.measures[best].alpha:g}" in figures["scale"][1].axes[0].get_xlabel()
    assert figures["samples"][1].axes[0].get_xlabel() == "number of samples"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": [0.5]}, "accuracy must be of the 10 classes of made up, got 1"),
        ({"accuracy": [1.5] * 10}, "accuracy must lie in [0, 1], got 1.5"),
        ({"alphas": []}, "alphas must hold a number >= 1 or several, got none"),
        ({"alphas": [0.5]}, "alpha must be a finite number >= 1, got 0.5"),
        ({"beta": 1.0}, "beta must lie in [0, 1), got 1.0"),
        ({"resamples": 0}, "resamples must be an integer >= 1, got 0"),
        ({"confidence": 1.0}, "confidence must lie in (0, 1), got 1.0"),
        ({"epsilon": -1}, "epsilon must be a finite number > 0, got -1"),
    ],
)
def test_settings_out_of_range(options, message):
    arguments = {"accuracy": ACCURACY} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        correlation.correlate(points=some_points(SIZES), **arguments)


NAMES = ("cat", "dog", "polar bear")


@pytest.mark.parametrize(
    "text",
    [
        "class,accuracy\ncat,0.9\ndog,0.25\npolar bear,1\n",
        "\ufeffClass;Accuracy\r\npolar bear;1\r\ndog;0.25\r\ncat;.9\r\n\r\n",
        "dog\t25%\ncat\t90 %\npolar bear\t100%",
        "n | accuracy | class \n5 | 0.25 | dog\n6 | 0.9 | cat\n7 | 1.0 | polar bear\n",
        '"cat",0.9\n"dog",25%\n"polar bear",1',
    ],
)
def test_accuracies_are_read_however_they_are_written(tmp_path, text):
    path = tmp_path / "accuracy.csv"
    path.write_text(text, encoding="utf-8")
    assert correlation.read_accuracies(path, NAMES).tolist() == [0.9, 0.25, 1.0]


def test_columns_may_have_other_names(tmp_path):
    path = tmp_path / "accuracy.csv"
    path.write_text("Label,accuracy,recall\ncat,0.1,0.9\ndog,0.2,\npolar bear,0.3,1\n")
    found = correlation.read_accuracies(path, NAMES, columns=("label", "Recall"))
    np.testing.assert_array_equal(found, [0.9, np.nan, 1.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "accuracy.csv is empty"),
        ("\n \n", "accuracy.csv is empty"),
        ("class,accuracy\n", "accuracy.csv has a heading and no row"),
        (b"\xff\xfe\x00", "accuracy.csv is no delimited text in UTF-8"),
        (
            "cat\ndog\n",
            "accuracy.csv must have the columns class and accuracy, or two columns without a heading, got a",
        ),
        ("label,acc,n\ncat,0.5,3\n", "got a first row label, acc, n"),
        ("label,acc\ncat,0.5\n", "two columns without a heading, got a first row label, acc"),
        ("cat,0.5\ndog,0.5,3\n", "accuracy.csv: row 2 has 3 cells, and the first one 2"),
        ("cat,0.5\ncat,0.6\ndog,1\n", "accuracy.csv: row 2 is a second one of class 'cat'"),
        ("cat,90\ndog,80\n", "accuracy of 'cat' must be a fraction in [0, 1], or have a % behind it, got 90"),
        ("cat,-0.1\ndog,0.5\n", "accuracy of 'cat' must lie in [0, 1], got -0.1"),
        ("cat,101%\ndog,50%\n", "accuracy of 'cat' must lie in [0, 1], got 101%"),
        ("cat,0.5\ndgo,0.5\npolar bear,1\n", "accuracy.csv 'dgo'; did you mean 'dog'?"),
        ("cat,0.5\n", "accuracy.csv lacks dog, polar bear of the 3 classes"),
    ],
)
def test_tables_that_are_none(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accuracy.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        correlation.read_accuracies("accuracy.csv", NAMES)


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("class,accuracy\ncat,1\n")
    with pytest.raises(ValueError, match=re.escape("unknown column of a.csv 'accurcy'; did you mean 'accuracy'?")):
        class_tables.by_class("a.csv", ("class", "accuracy"), ("class", "accurcy"))
    with pytest.raises(FileNotFoundError, match="none"):
        correlation.read_accuracies("none.csv", NAMES)


def test_accuracies_are_read_from_a_workdir(tmp_path):
    results, lines, config = pages.a_run(7)
    workdir = pages.write_run(tmp_path / "run", results, lines, config)
    names = pages.class_names(7)[::-1]
    wanted = [results["per_class"][name]["accuracy"] for name in names]
    assert correlation.read_accuracies(workdir, names).tolist() == wanted
    with pytest.raises(ValueError, match="unknown class in"):
        correlation.read_accuracies(workdir, NAMES)
    (workdir / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        correlation.read_accuracies(workdir, names)
