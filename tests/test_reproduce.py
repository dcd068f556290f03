"""The paper's tables: that their runs are what they say, and that pages have what the runs found."""

import csv
import dataclasses
import doctest
import functools
import json
import math
import os
import pathlib
import re
import sys

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "launch"))
import reproduce
import reproduction.measured
from reproduction import claims, pages, plots, quantities, runs, states, studies, targets
from reproduction.catalogue import TARGETS
from reproduction.measured import Measured
from reproduction.runs import Job
from reproduction.targets import Cell, Target

from dsb_jax.evaluation.runs import flat
from dsb_jax.training import methods

# What the paper calls otherwise than the trainer does.
_CALLED = {
    "NormSoftmax": "NSM",
    "SoftTriple": "ST",
    "LDAM-DRW": "CB-LDAM",
    "Deconfound-TDE": "TDE",
    "DIVE": "DIVE-BS",
    "CDB": "CDB-CE",
    "domain balancing": "DomB",
}
CELLS = [cell for target in TARGETS.values() for of_scale in target.cells.values() for cell in of_scale]


@pytest.mark.parametrize("module", [claims, reproduction.measured, runs, targets], ids=lambda module: module.__name__)
def test_examples_run(module):
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried > 0


def test_every_table_and_figure_of_the_paper_is_there():
    """Tables 1-12, Figures 2-20, 22 and 23; figure 2 is two."""
    names = {re.sub("-.*", "", name) for name in TARGETS} - {"ablation"}
    assert names == {f"table{k}" for k in range(1, 13)} | {f"figure{k}" for k in [*range(2, 21), 22, 23]}
    assert all(target.cells or target.commands or target.reason for target in TARGETS.values())


def test_every_cell_has_valid_settings_and_its_methods_name():
    for cell in CELLS:
        ours = methods.name(cell.configured())
        method = (
            re.sub(r"(, offsets)?(, \w+ = [\w.]+)+$", "", cell.method)
            .replace("DSB+", "DSB-")
            .replace("BLSoftmax", "BS")
        )
        expected = "DSB-CE-1" if "interclass" in cell.method else _CALLED.get(method, method)
        if cell.config == "coco_glt" and method == "LDAM":
            expected = "CB-LDAM"  # its authors re-weigh the last fifth
        assert ours in (expected, f"{expected}-CE"), cell


def test_runs_that_tables_share_are_the_same():
    """Of one scale, what has the same folder has the same settings."""
    settings, shared = {}, 0
    for target in TARGETS.values():
        for scale, cells in target.cells.items():
            assert len({cell.name for cell in cells}) == len(cells)
            for cell in cells:
                own = flat(cell.configured().to_dict())
                assert settings.setdefault((scale, cell.name), own) == own, cell
            shared += len(cells)
    assert shared > len(settings) + 20


def test_a_method_differs_from_its_base_in_the_balancer_alone():
    pairs = 0
    for target in TARGETS.values():
        for cells in target.cells.values():
            for cell, base in targets.bases(cells):
                one, other = (flat(each.configured().to_dict()) for each in (cell, base))
                differing = {key for key in one if one[key] != other[key]}
                if base.method.startswith("DSB"):  # an ablation, or another start
                    assert len(differing) == 1, cell
                    assert differing.pop().startswith(("dsb.", "start_epoch")), cell
                elif "offsets" in cell.method:  # in the place of weights
                    offsets = {"balancer", "dsb.power", "dsb.logit_adjustment"}
                    assert offsets <= differing <= offsets | {"start_epoch"}, cell
                else:
                    assert {"balancer"} <= differing <= {"balancer", "start_epoch", "dsb.interclass"}, cell
                pairs += 1
    assert pairs > 250


def printed(table, row, column):
    """A number of the paper's table, as it stands in the file; the paper's names are those of rows."""
    found = [each for each in targets.printed_rows(table) if all(each[key] == value for key, value in row.items())]
    assert len(found) == 1, row
    return float(found[0][column])


# Of a cell, the row of the paper's table that it stands beside, and how the columns of its block begin.
ROWS = {
    "table02": lambda c: ({"method": c.method}, {"ImageNet-LT": "in", "iNaturalist 2018": "inat"}[c.on]),
    "table04": lambda c: (
        {"method": c.method, "dim": re.search(r"(\d+)-d", c.on)[1]},
        "cub" if "CUB" in c.on else "cars",
    ),
    "table05": lambda c: ({"method": c.method}, f"if{c.on.rpartition(' ')[2]}"),
    "table06": lambda c: ({"method": c.method}, c.on[-3:].lower()),
    "table09": lambda c: ({"method": c.method}, f"if{c.on.rpartition(' ')[2]}"),
    "table10": lambda c: ({"method": c.method}, "cifar100" if "CIFAR" in c.on else "miniimagenet"),
}
COLUMNS = {
    "top1": "overall",
    "head": "head",
    "middle": "middle",
    "tail": "tail",
    "recall_at_1": "r1",
    "recall_at_2": "r2",
    "nmi": "nmi",
}


@pytest.mark.parametrize("name", ROWS)
def test_every_number_of_the_papers_table_stands_beside_its_run(name):
    columns = COLUMNS | ({"top1": "acc", "precision": "prec"} if name == "table06" else {})
    cells, seen = TARGETS[f"table{int(name[-2:])}"].cells["paper"], 0
    for cell in cells:
        row, prefix = ROWS[name](cell)
        for measure, number in cell.printed.items():
            assert number == printed(name, row, f"{prefix}_{columns[measure]}"), cell
            seen += 1
    wanted = re.compile(rf"(?!.*_delta).*_({'|'.join(columns.values())})$")
    assert seen == sum(
        bool(value) for row in targets.printed_rows(name) for key, value in row.items() if wanted.match(key)
    )


def test_the_numbers_of_tables_1_and_3_stand_beside_their_runs():
    for cell in TARGETS["table1"].cells["paper"]:
        dataset, model = cell.on.split(", ")
        assert len(cell.printed) == 9
        for measure, number in cell.printed.items():
            assert number == printed("table01", {"dataset": dataset, "model": model}, measure)
    for cell in TARGETS["table3"].cells["paper"]:
        dataset, backbone = cell.on.split(", ")
        column = f"{dataset.replace('-', '').lower()}_{cell.method.replace('-', '_').lower()}"
        assert cell.printed == {"top1": printed("table03", {"backbone": backbone}, column)}


def test_the_papers_deltas_are_those_of_the_printed_numbers():
    """Of Table 2: the catalogue pairs methods as the paper does."""
    given = {row["method"]: row for row in targets.printed_rows("table02")}
    for cell, base in targets.bases(TARGETS["table2"].cells["paper"]):
        row, prefix = given[cell.method], "in" if cell.on == "ImageNet-LT" else "inat"
        if row[f"{prefix}_overall_delta"] and base.printed:
            delta = cell.printed["top1"] - base.printed["top1"]
            assert delta == pytest.approx(float(row[f"{prefix}_overall_delta"]), abs=0.051), cell


# Runs that are made up: what matters is what becomes of them.
SMALL = Target(
    "digits",
    "1-2",
    {"cpu": studies.grid("digits", "digits_lt", ("CE", "DSB-CE", "CB-CE"), "model=lenet,epochs=6")},
    {"top1": "top-1", "tail": "tail", "r_N": "N"},
    notes={"cpu": "Digits, <not> the paper's."},
)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(TARGETS, "table2", SMALL)
    monkeypatch.setattr(states, "_operations", lambda *network: 1_000_000)
    return SMALL


def accuracy_of(job):
    base = {"DSB-CE": 0.53, "CB-CE": 0.49}.get(job.cell.method, 0.5)
    return base + 0.01 * job.seed + (0.004 * job.seed**2 if job.cell.method == "DSB-CE" else 0)


def made_up(job, out, cores=None):
    """In the place of a training run."""
    del cores
    folder = job.folder(out)
    folder.mkdir(parents=True)
    of_class = {"accuracy": 0.5, "samples": 3, "test_samples": 9, "volume": 2.0, "scale": 1.0, "weight": 1.0}
    results = {
        "numbers": "true",
        "top1": accuracy_of(job),
        "by_scale": {"low": 0.25},
        "per_class": {"a": of_class, "b": of_class | {"accuracy": None, "volume": 3.0}},
        "correlations": {"samples": 0.25, "interclass": None},
        "correlations_by_space": {"feature": {"volume": 0.75, "scale": {"1": 0.5}}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    started = {"commit": "0123456789", "devices": 1, "device": "cpu", "jax": "1", "flax": "2"}
    (folder / "environment.json").write_text(json.dumps([started]))
    np.save(folder / "train_indices.npy", np.arange(5 + job.seed))
    folder.with_name(f"{folder.name}.settings").write_text(job.config)


def command(tmp_path, *arguments):
    return reproduce.main([*arguments, f"--out={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}"])


def test_a_page_has_means_errors_and_paired_tests_of_what_runs_found(small, tmp_path, monkeypatch, capsys):
    del small
    monkeypatch.setattr(runs, "run", made_up)
    assert command(tmp_path, "table2", "--scale=cpu", "--jobs=2") == 0
    assert "9 of 9 runs to do" in capsys.readouterr().out
    text = (tmp_path / "results" / "table2-cpu.md").read_text()
    assert text.startswith("# Table 2: digits (cpu)\n\nDigits, <not> the paper's.\n\n9 runs, seeds 0, 1, 2; ")
    ours, base = np.array([[53, 54.4, 56.6], [50, 51, 52]])
    error = np.std(ours, ddof=1) / math.sqrt(3)
    assert f"| DSB-CE | 3 | {ours.mean():.1f} ± {error:.1f} | – | 0.250 ± 0.000 |" in text
    differences = ours - base
    p = stats.ttest_rel(ours, base).pvalue
    line = f"{differences.mean():+.1f} ± {np.std(differences, ddof=1) / math.sqrt(3):.1f} | {p:.3f} |"
    assert f"| DSB-CE − CE | digits | 3 | {line}" in text
    assert "| CB-CE − CE | digits | 3 | −1.0 ± 0.0 | – |" in text  # differences that are all the same have no test
    page = (tmp_path / "results" / "table2-cpu.html").read_text()
    assert "Digits, &lt;not&gt; the paper&#x27;s." in page
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_results_are_rows_of_runs_and_of_classes(small, tmp_path, monkeypatch):
    del small
    monkeypatch.setattr(runs, "run", made_up)
    for seeds in (["0", "1"], ["1", "2"]):
        command(tmp_path, "table2", "--scale=cpu", "--methods", "CE", "--seeds", *seeds)
    with open(tmp_path / "results" / "table2-cpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert [float(row["top1"]) for row in rows] == pytest.approx([0.5, 0.51, 0.52])
    assert rows[0]["low_third"] == "0.25"
    assert (rows[0]["r_Sprime"], rows[0]["r_S_alpha1"], rows[0]["r_W"]) == ("0.75", "0.5", "")
    assert float(rows[0]["sum_of_volumes"]) == 5
    assert len({row["subset"] for row in rows}) == 3
    with open(tmp_path / "results" / "table2-cpu-classes.csv", newline="") as file:
        classes = list(csv.DictReader(file))
    assert [(row["seed"], row["class"], row["score"]) for row in classes[:2]] == [("0", "a", "0.5"), ("0", "b", "")]
    assert len(classes) == 6


def test_what_is_finished_is_left_alone_and_what_fails_is_named(small, tmp_path, monkeypatch, capsys):
    del small
    done = []

    def sometimes(job, out, cores=None):
        if job.cell.method == "CB-CE":
            raise runs.FailedError("error: no room")
        done.append(job.key)
        made_up(job, out, cores)

    monkeypatch.setattr(runs, "run", sometimes)
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0") == 1
    assert re.search(r"failed: .*digits/cb-ce/seed0: error: no room", capsys.readouterr().out)
    assert len(done) == 2
    monkeypatch.setattr(runs, "run", made_up)
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0") == 0
    assert "1 of 3 runs to do" in capsys.readouterr().out
    text = (tmp_path / "results" / "table2-cpu.md").read_text()
    assert "| CB-CE − CE | digits | 1 | −1.0 | – |" in text  # one pair has neither an error nor a test


def test_a_run_with_other_settings_is_not_taken_for_what_is_asked_for(small, tmp_path, monkeypatch, capsys):
    del small
    monkeypatch.setattr(runs, "run", made_up)
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0", "--set", "epochs=7") == 0
    capsys.readouterr()
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0") == 2
    error = capsys.readouterr().err
    assert re.search(
        r"seed0 was run with configs/digits_lt\.py:.*epochs=7,seed=0, not with configs/digits_lt\.py:", error
    )


def test_the_same_settings_in_other_words_are_taken_for_what_is_asked_for(small, tmp_path, monkeypatch, capsys):
    """As where one table names a default that another does not."""
    del small
    monkeypatch.setattr(runs, "run", made_up)
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0") == 0
    capsys.readouterr()
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0", "--set", "alpha_of_no_such=1") == 2
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0", "--set", "start_epoch=None") == 0
    assert "0 of 3 runs to do" in capsys.readouterr().out
    (written,) = (tmp_path / "runs").rglob("dsb-ce/seed0.settings")
    written.write_text(written.read_text().replace("epochs=6", "epoques=6"))  # which a later version has no more
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0") == 2
    assert "was run with" in capsys.readouterr().err


def test_a_page_says_what_runs_were_told_besides(small, tmp_path, monkeypatch, capsys):
    del small, capsys
    monkeypatch.setattr(runs, "run", made_up)
    page = tmp_path / "results" / "table2-cpu.md"
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0") == 0
    assert "--set" not in page.read_text()
    assert command(tmp_path / "other", "table2", "--scale=cpu", "--seeds", "0", "--set", "epochs=7,log_every=9") == 0
    page = tmp_path / "other" / "results" / "table2-cpu.md"
    assert "Trained with other settings than the study's (--set): epochs=7,log_every=9.\n" in page.read_text()


def test_a_page_has_what_is_measured_and_says_how_much_that_is(small, tmp_path, monkeypatch, capsys):
    del small, capsys
    monkeypatch.setattr(runs, "run", made_up)
    page = tmp_path / "results" / "table2-cpu.md"
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0", "--methods", "CE", "CB-CE") == 0
    assert "; 2 of 3 cells. " in page.read_text()
    assert "| CB-CE | 1 | 49.0 |" in page.read_text()
    assert "DSB-CE" not in page.read_text()
    assert command(tmp_path, "table2", "--scale=cpu", "--seeds", "0") == 0
    assert "of 3 cells" not in page.read_text()
    assert "| DSB-CE | 1 | 53.0 |" in page.read_text()


def test_commits_are_short():
    assert pages._short("0123456789abcdef-dirty") == "0123456-dirty"
    assert pages._short("unknown") == "unknown"


def test_runs_on_other_subsets_are_told_from_those_on_the_same():
    cells = studies.grid("A", "digits_lt", ("CE", "CB-CE", "DSB-CE"))
    measured, _ = study(cells, "top1")
    facts = {"hardware": "h", "versions": "v", "commit": "c", "numbers": "true"}
    rows = [row | facts | {"subset": "other" if row["method"] == "CB-CE" else row["seed"]} for row in measured.rows]
    text = pages.markdown(
        dataclasses.replace(measured, target=dataclasses.replace(measured.target, measures={"top1": "t"}), rows=rows)
    )
    assert "But CB-CE and CE were trained on other subsets of the data." in text
    assert "| A | 0 or other | 1 or other | 2 or other |" in text


def test_runs_that_were_told_other_things_are_not_compared():
    """As half of the epochs; how they are watched, and when a balancer begins, is no matter."""
    cells = studies.grid("A", "digits_lt", ("CE", "CB-CE", "DSB-CE"), "epochs=8")
    measured, values = study(cells, "top1")
    measured = dataclasses.replace(measured, target=dataclasses.replace(measured.target, measures={"top1": "t"}))
    told = {
        ("CE", "0"): ",epochs=4,log_every=7",
        ("DSB-CE", "0"): ",log_every=9,epochs=4",
        ("CB-CE", "0"): ",epochs=4,start_epoch=2",
        ("DSB-CE", "1"): ",epochs=4",
        ("CB-CE", "2"): ",epoques=4",  # of another version
    }
    settings = {cell.method: cell.settings for cell in cells}
    facts = {"hardware": "h", "versions": "v", "commit": "c", "numbers": "true"}
    rows = [
        row | facts | {"settings": settings[row["method"]] + told.get((row["method"], row["seed"]), "")}
        for row in measured.rows
    ]
    measured = dataclasses.replace(measured, rows=rows)
    base, *others = cells
    for cell, seeds in zip(others, ("01", "02"), strict=True):
        wanted = [values["A", cell.method, seed, "top1"] - values["A", "CE", seed, "top1"] for seed in seeds]
        np.testing.assert_allclose(measured.differences(cell, base, "top1"), wanted)
        found = quantities.gain("top1", of=lambda each, name=cell.method: each.method == name)(measured)
        assert found == pytest.approx(dict(zip(seeds, wanted, strict=True)))
    text = pages.markdown(measured)
    assert "CB-CE and CE, DSB-CE and CE are not compared where --set told them different things." in text
    assert "(--set): epochs=4; epochs=4,log_every=7; epochs=4,log_every=9; epochs=4,start_epoch=2; settings=" in text
    same = dataclasses.replace(measured, rows=[row | {"settings": settings[row["method"]]} for row in rows])
    assert "not compared" not in pages.markdown(same)
    words = [row | {"settings": ",".join(reversed(row["settings"].split(",")))} for row in same.rows]
    assert pages.markdown(dataclasses.replace(same, rows=words)) == pages.markdown(same)


def test_numbers_of_the_paper_stand_beside_ours():
    """Of a study by the paper's recipe."""
    target = TARGETS["table5"]
    cells = [
        cell for cell in target.cells["paper"] if cell.on == "CIFAR-100-LT, imbalance 10" and "ST" not in cell.method
    ]
    row = {"seed": "0", "hardware": "h", "versions": "v", "commit": "c", "numbers": "a part", "recall_at_2": "0.66"}
    rows = [row | {"on": cell.on, "method": cell.method, "recall_at_1": "0.5"} for cell in cells]
    text = pages.markdown(Measured(target, "table5", "paper", rows))
    assert "| DSB-NSM | 1 | 50.0 | 56.3 | 66.0 | 66.7 | – | 63.5 |" in text
    assert "| DSB-NSM − NormSoftmax | CIFAR-100-LT, imbalance 10 | 1 | 0.0 | – | +1.7 | 0.0 | – | +1.5 |" in text
    assert "| DSB-ST | 0 | – | 58.8 | – | 69.0 | – | 65.8 |" in text  # not run yet
    assert "Not the whole dataset: a part." in text


def test_the_list_tells_all_targets_and_what_they_need(small, tmp_path, monkeypatch, capsys):
    del small
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert reproduce.main(["--list"]) == 0
    text = capsys.readouterr().out
    for name, target in TARGETS.items():
        assert f"{name}: {target.title}" in text
    assert re.search(r"table4: .*\n  paper  18 cells of configs cub2011, cars196; .*; needs cub2011, cars196\n", text)
    assert "an illustration, which has no numbers" in text
    assert "ready with --input, a folder of point clouds" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: TARGET is missing: one of table1, table2, "),
        (["figure2"], "error: 'figure2' is several; choose one of figure2-left, figure2-right"),
        (["table13"], "error: unknown table or figure 'table13'; "),
        (["figure9"], "error: figure9 (eight fundus images): an illustration, which has no numbers"),
        (["table4", "--scale=cpu"], "error: unknown scale of table4 'cpu'. Valid names: paper"),
        (
            ["table5", "--scale=cpu", "--methods", "DSB-NMS"],
            "unknown method of table5 'DSB-NMS'; did you mean 'DSB-NSM'",
        ),
        (["table4"], "error: table4 at scale paper needs cub2011, cars196: python -m dsb_jax.data.prepare cub2011"),
        (["figure7"], "error: figure7 needs cub2011, cars196, mini_imagenet: python -m dsb_jax.data.prepare cub2011"),
        (
            ["figure7", "--pages"],
            "error: figure7 has no page of its own: it runs python -m dsb_jax.toolkit scales cub2011",
        ),
        (
            ["figure7", "--scale=cpu"],
            "error: --scale is of tables and figures that train: figure7 runs python -m dsb_jax.toolkit scales cub2011",
        ),
        (
            ["table11", "--seeds", "3"],
            "error: --seeds is of tables and figures that train: table11 runs python launch/",
        ),
        (["table5", "--pages"], "error: of table5 at scale paper nothing is measured in "),
        (["figure6"], "error: figure6 needs --input: a folder of point clouds"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    assert command(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_cores_are_divided(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    assert reproduce.cores(2) == [{0, 1}, {2, 3}]
    assert reproduce.cores(1) == [None]
    assert reproduce.cores(5) == [None] * 5
    monkeypatch.delattr(os, "sched_getaffinity")
    assert reproduce.cores(2) == [None] * 2


def test_what_is_not_prepared_is_left_out_and_weights_are_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(states, "missing", lambda target, scale: ["cars196"])
    assert command(tmp_path, "table4", "--seeds", "0") == 2
    said = capsys.readouterr().err
    assert "9 cells are left out: cars196 is not prepared" in said
    assert "CUB-2011, 64-d begins with ImageNet's weights: --set init_from=FILE" in said


@pytest.mark.parametrize("epochs", [100, 160])
def test_a_method_that_would_never_re_weight_is_refused(epochs, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(states, "missing", lambda target, scale: [])
    monkeypatch.setattr(runs, "run", made_up)
    settings = f"epochs={epochs},milestones=(80,90)"
    assert command(tmp_path, "table2", "--scale=gpu", "--seeds", "0", "--set", settings) == 2
    said = capsys.readouterr().err
    assert f"LDAM-DRW re-weights from epoch 160 on, which {epochs} epochs never reach; --methods leaves it out" in said
    assert not (tmp_path / "runs").exists()


def test_only_what_re_weights_must_begin_to(monkeypatch, tmp_path, capsys):
    """A base has no start, and configs may say one all the same; what is finished is left as it is."""
    monkeypatch.setattr(states, "missing", lambda target, scale: [])
    monkeypatch.setattr(runs, "run", made_up)
    few = ("--scale=cpu", "--seeds", "0", "--set", "epochs=5", "--methods")
    assert command(tmp_path, "table5", *few, "NormSoftmax") == 0
    assert command(tmp_path, "table2", *few, "CE", "CB-CE") == 0
    capsys.readouterr()
    for target, method in (("table2", "DSB-CE"), ("table5", "DSB-NSM")):
        assert command(tmp_path, target, *few, method) == 2
        assert f"{method} re-weights from epoch 5 on, which 5 epochs never reach" in capsys.readouterr().err
    target = TARGETS["table2"]
    for cell in target.cells["cpu"]:
        if cell.method == "DSB-CE":
            made_up(Job("table2", "cpu", cell, 0, "epochs=5"), tmp_path / "runs", None)
    assert command(tmp_path, "table2", *few, "DSB-CE") == 0


def study(cells, *measures):
    """Random results of three seeds, and a look-up of them in points."""
    rng, rows, values = np.random.default_rng(0), [], {}
    for cell in cells:
        for seed in "012":
            of_run = dict(zip(measures, rng.random(len(measures)), strict=True))
            rows.append(
                {"on": cell.on, "method": cell.method, "seed": seed} | {key: str(v) for key, v in of_run.items()}
            )
            values |= {(cell.on, cell.method, seed, key): 100 * value for key, value in of_run.items()}
    return Measured(Target("", "", {"cpu": tuple(cells)}), "table2", "cpu", rows), values


SHOTS = ("head", "middle", "tail")
ON_TWO = [
    cell for on in ("A, 1", "B, 2") for cell in studies.grid(on, "digits_lt", ("CE", "CB-CE", "DSB-CE", "DSB-CE-1"))
]


def without(measured, on, method, seed):
    rows = [row for row in measured.rows if (row["on"], row["method"], row["seed"]) != (on, method, seed)]
    return dataclasses.replace(measured, rows=rows)


def test_a_gain_is_averaged_over_the_comparisons_of_a_seed():
    measured, values = study(ON_TWO, "top1")

    def difference(seed, method="DSB-CE"):
        return np.mean([values[on, method, seed, "top1"] - values[on, "CE", seed, "top1"] for on in ("A, 1", "B, 2")])

    of_dsb = quantities.gain("top1", of=quantities.is_dsb)
    assert of_dsb(measured) == pytest.approx({seed: difference(seed) for seed in "012"})
    by_two = quantities.gain("top1", of=quantities.is_dsb, by=2.0)(measured)
    assert by_two == pytest.approx({seed: difference(seed) - 2 for seed in "012"})
    three = ("CB-CE", "DSB-CE", "DSB-CE-1")
    of_all = quantities.gain("top1", of=lambda cell: True)(measured)
    assert of_all == pytest.approx({seed: np.mean([difference(seed, each) for each in three]) for seed in "012"})
    # A seed that lacks a run says nothing.
    assert of_dsb(without(measured, "B, 2", "CE", "1")).keys() == {"0", "2"}
    assert of_dsb(without(measured, "B, 2", "CB-CE", "1")).keys() == {"0", "1", "2"}
    # A comparison that no run is of yet is not waited for.
    begun = functools.reduce(lambda left, seed: without(left, "B, 2", "DSB-CE", seed), "012", measured)
    of_first = {seed: values["A, 1", "DSB-CE", seed, "top1"] - values["A, 1", "CE", seed, "top1"] for seed in "012"}
    one = quantities.gain("top1", of=lambda cell: cell.method == "DSB-CE")
    assert one(begun) == pytest.approx(of_first)
    assert (one(begun).part, one(measured).part) == (", 1 of 2 comparisons", "")


def test_the_tail_is_compared_with_the_better_one_of_middle_and_head():
    cells = studies.grid("A", "digits_lt", ("CE", "DSB-CE"))
    measured, values = study(cells, "head", "middle", "tail")
    gains = {(seed, m): values["A", "DSB-CE", seed, m] - values["A", "CE", seed, m] for seed in "012" for m in SHOTS}
    wanted = {seed: gains[seed, "tail"] - max(gains[seed, "middle"], gains[seed, "head"]) for seed in "012"}
    assert quantities.most_in_tail(quantities.is_dsb)(measured) == pytest.approx(wanted)
    no_middle = dataclasses.replace(measured, rows=[row | {"middle": ""} for row in measured.rows])
    wanted = {seed: gains[seed, "tail"] - gains[seed, "head"] for seed in "012"}
    assert quantities.most_in_tail(quantities.is_dsb)(no_middle) == pytest.approx(wanted)
    no_tail = dataclasses.replace(measured, rows=[row | {"tail": ""} for row in measured.rows])
    assert quantities.most_in_tail(quantities.is_dsb)(no_tail) == {}


def test_a_method_is_compared_with_the_best_of_others():
    measured, values = study(ON_TWO, "top1")
    ahead = quantities.above({"DSB-CE": ("CE", "CB-CE", "LOCE")}, "top1")
    found = ahead(measured)
    for seed in "012":
        rivals = [max(values[on, other, seed, "top1"] for other in ("CE", "CB-CE")) for on in ("A, 1", "B, 2")]
        ours = [values[on, "DSB-CE", seed, "top1"] for on in ("A, 1", "B, 2")]
        assert found[seed] == pytest.approx(np.mean(np.subtract(ours, rivals)))
    assert ahead(without(measured, "A, 1", "CB-CE", "2")).keys() == {"0", "1"}


def test_measures_of_a_run_are_compared():
    measured, values = study(ON_TWO, "r_S_alpha2", "r_N")

    def value(seed, measure, method="CE"):
        return values["B, 2", method, seed, measure] / 100 if measure else 0

    for first, second in (("r_S_alpha2", "r_N"), ("r_S_alpha2", None), (None, "r_N")):
        found = quantities.excess(first, second, "B")(measured)
        assert found == pytest.approx({seed: value(seed, first) - value(seed, second) for seed in "012"})
    of_other = quantities.excess("r_N", None, "B", method="DSB-CE")(measured)
    assert of_other == pytest.approx({seed: value(seed, "r_N", "DSB-CE") for seed in "012"})


def test_a_measure_is_compared_between_datasets():
    cells = [Cell("CE", on, "cifar10") for on in ("C-LT, x", "C, x", "C-LT, y", "C, y", "C-LT, z", "D, x")]
    measured, values = study(cells, "r_N")
    wanted = {
        seed: np.mean(
            [values[f"C-LT, {net}", "CE", seed, "r_N"] - values[f"C, {net}", "CE", seed, "r_N"] for net in "xy"]
        )
        for seed in "012"
    }
    assert quantities.more_on("r_N", "C-LT", "C")(measured) == pytest.approx({k: v / 100 for k, v in wanted.items()})


def test_measures_that_rise_together_have_a_rank_correlation():
    cells = [
        Cell("CE", f"{name}, {m} of each, {net}", "cifar10")
        for name in ("A", "B")
        for net in ("x", "y")
        for m in (10, 20, 30, 40)
    ]
    measured, values = study(cells, "sum_of_volumes", "top1")
    found = quantities.rise_together("sum_of_volumes", "top1")(measured)
    for seed in "012":
        ranks = []
        for start in range(0, 16, 4):
            own = cells[start : start + 4]
            columns = ([values[cell.on, "CE", seed, key] for cell in own] for key in ("sum_of_volumes", "top1"))
            ranks.append(stats.spearmanr(*columns).statistic)
        assert found[seed] == pytest.approx(np.mean(ranks))


def classes_of(cells, **columns):
    """Rows of classes of one seed: of each cell its column."""
    return [
        {"seed": "0", "on": cell.on, "method": cell.method, "class": str(label)}
        | {name: str(values[place][label]) for name, values in columns.items()}
        for place, cell in enumerate(cells)
        for label in range(len(next(iter(columns.values()))[place]))
    ]


def test_what_grows_fast_where_another_does_has_a_rank_correlation():
    cells = [Cell("CE", f"A, {m} of each, x", "cifar10") for m in (10, 20, 80, 160)]
    columns = {"top1": (0.1, 0.2, 0.3, 0.31), "sum_of_volumes": (100, 250, 300, 310)}  # gains .1 .05 .01; 150 25 10
    rows = [
        {"on": cell.on, "method": "CE", "seed": "0"} | {key: str(column[place]) for key, column in columns.items()}
        for place, cell in enumerate(cells)
    ]
    measured = Measured(Target("", "", {"cpu": tuple(cells)}), "figure2-right", "cpu", rows)
    assert quantities.grow_together("sum_of_volumes", "top1")(measured) == pytest.approx({"0": 1})
    rows[2]["top1"] = "0.6"  # gains .2 a doubling, from which it falls
    assert quantities.grow_together("sum_of_volumes", "top1")(measured) == pytest.approx({"0": 0.5})
    assert quantities.first_growth("sum_of_volumes")(measured) == pytest.approx({"0": math.log2(2.5) - 1})


def test_a_smaller_class_may_be_recognised_more():
    cells = [Cell("CE", on, "cifar10") for on in ("C-LT, x", "C, x")]
    rows = classes_of(cells, score=[[0.5, 0.6, 0.1], [0, 1, 0]], samples=[[9, 5, 5], [1, 2, 3]])
    measured, _ = study(cells, "top1")
    measured = dataclasses.replace(measured, rows=measured.rows[::3], classes=rows)
    assert quantities.overtaken(measured) == pytest.approx({"0": 50})  # of (1, 0) and (2, 0)
    rarest = quantities.of_classes(lambda of: of["2"], "C-LT")
    assert rarest(measured) == pytest.approx({"0": 10})


def test_weak_classes_are_the_same_with_other_seeds():
    cells = [Cell("CE", "A", "cifar10")]
    measured, _ = study(cells, "top1")
    scores = {"0": [0.1, 0.2, 0.3, 0.4], "1": [0.2, 0.1, 0.3, 0.4], "2": [0.4, 0.3, 0.2, 0.1]}
    rows = [row | {"seed": seed} for seed, score in scores.items() for row in classes_of(cells, score=[score])]
    found = quantities.same_classes_with_other_seeds(dataclasses.replace(measured, classes=rows))
    assert found == pytest.approx({"0": 0.8, "1": -0.8, "2": -1})
    two = dataclasses.replace(measured, rows=measured.rows[:2], classes=rows)
    assert quantities.same_classes_with_other_seeds(two) == {}


def test_seeds_and_comparisons_are_taken_that_make_the_most_of_both():
    for seeds, wanted in (
        (["012", "012"], "012"),
        (["012", "01"], "01"),  # four rather than three
        (["012"] * 4 + ["0"] * 2, "012"),  # twelve rather than six
        (["012", "", ""], "012"),
        (["01", "12", "12"], "12"),
        (["234", "012", "123"], "012"),  # what all have is one
        (["", ""], ""),
    ):
        assert quantities._most([frozenset(each) for each in seeds]) == frozenset(wanted)


def test_weak_classes_are_the_same_where_accuracies_are_ranked_alike():
    cells = [Cell("CE", on, "cifar10") for on in "ABC"]
    rows = classes_of(cells, score=[[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.5, 0.9], [0.4, 0.3, 0.2, 0.1]])
    rows.append(rows[0] | {"class": "untested", "score": ""})
    measured, _ = study(cells, "top1")
    measured = dataclasses.replace(measured, rows=measured.rows[::3], classes=rows)  # seed 0
    assert quantities.same_classes(measured) == pytest.approx({"0": (1 - 1 - 1) / 3})
    same = [row | {"score": "0.5"} for row in rows]
    assert quantities.same_classes(dataclasses.replace(measured, classes=same)) == {}  # no rank is defined


def lines(axes):
    """What lines with a name show."""
    return {line.get_label(): line.get_xydata() for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_weak_classes_are_drawn_by_model_from_the_weakest_on():
    cells = [Cell("CE", on, "cifar10") for on in "AB"]
    rows = classes_of(cells, score=[[0.9, 0.1, 0.5], [0.6, 0.2, 0.3]])
    rows += [row | {"seed": "1", "score": str(float(row["score"]) + 0.04)} for row in rows]
    alone = [row | {"class": "of A alone"} for row in rows[:1]]
    of_all = dataclasses.replace(study(cells, "top1")[0], classes=rows + alone)
    _, figure = plots.weak_classes(of_all)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1", "2", "0"]
    np.testing.assert_allclose(lines(axes)["A"], [[12, 0], [52, 1], [92, 2]])
    np.testing.assert_allclose(lines(axes)["B"], [[22, 0], [32, 1], [62, 2]])
    assert plots.weak_classes(dataclasses.replace(of_all, classes=[row for row in rows if row["on"] == "A"])) is None


def test_accuracy_is_drawn_beside_parts_of_the_largest_scale_and_number():
    cells = [Cell("CE", on, "cifar10") for on in "AB"]
    columns = {"score": [[0.9, 0.1], [0.6, 0.2]], "scale_of_class": [[4, 1], [2, 3]], "samples": [[50, 5], [9, 9]]}
    _, figure = plots.beside_scale(dataclasses.replace(study(cells, "top1")[0], classes=classes_of(cells, **columns)))
    first, second = map(lines, figure.axes)  # of each dataset, its first class above
    np.testing.assert_allclose(first["accuracy"], [[0.1, 0], [0.9, 1]])
    np.testing.assert_allclose(first["S / max S"], [[0.25, 0], [1, 1]])
    np.testing.assert_allclose(first["N / max N"], [[0.1, 0], [1, 1]])
    np.testing.assert_allclose(second["S / max S"], [[1, 0], [2 / 3, 1]])


def test_top_1_and_volumes_are_drawn_by_number_of_images():
    cells = [cell for cell in studies.subsets()["cpu"] if cell.on.startswith("CIFAR-100,")]
    of_all, values = study(cells, "top1", "sum_of_volumes")
    measures = {"top1": "top-1", "sum_of_volumes": "sum"}
    of_all = dataclasses.replace(of_all, target=dataclasses.replace(of_all.target, measures=measures))
    _, figure = plots.by_number(of_all)
    for axes, key in zip(figure.axes, measures, strict=True):
        drawn = axes.containers[0].lines[0].get_xydata()
        assert drawn[:, 0].tolist() == [cell.configured().images_per_class for cell in cells]
        wanted = np.array([np.mean([values[cell.on, "CE", seed, key] for seed in "012"]) for cell in cells])
        np.testing.assert_allclose(drawn[:, 1], wanted if key == "top1" else wanted / wanted.max())
    (name,) = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert name == "CIFAR-100, ResNet-8"
    assert plots.by_number(dataclasses.replace(of_all, rows=[])) is None


def test_thirds_are_those_of_the_base():
    cells = studies.grid("A", "digits_lt", ("CE", "DSB-CE"))
    rows = classes_of(
        cells,
        score=[[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.3, 0.2, 0.4, 0.9, 0.5, 0.6]],
        scale_of_class=[[5, 6, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6]],
    )
    measured, _ = study(cells, "top1")
    measured = dataclasses.replace(measured, rows=measured.rows[::3], classes=rows)
    of_thirds = [100 * np.mean(gains) for gains in ([0.1, 0.5], [0, 0], [0.2, 0])]
    for said in (lambda gains: gains[0], lambda gains: gains[1], lambda gains: gains[2]):
        assert quantities.of_thirds(said)(measured) == pytest.approx({"0": said(of_thirds)})
    assert quantities.of_thirds(min)(measured) == pytest.approx({"0": 0})


def test_gains_and_levels_of_some_classes_are_told_from_those_of_the_others():
    cells = studies.grid("A", "digits_lt", ("CE", "DSB-CE"))
    rows = classes_of(cells, score=[[0.1, 0.2, 0.3, 0.5], [0.2, 0.2, 0.2, 0.7]])
    measured, _ = study(cells, "top1")
    measured = dataclasses.replace(measured, rows=measured.rows[::3], classes=rows)
    assert quantities.more_in("0", "3")(measured) == pytest.approx({"0": 15 + 5})
    assert quantities.weaker("0", "1")(measured) == pytest.approx({"0": 40 - 15})
    assert quantities.more_in("no class of these")(measured) == {}


def test_class_accuracies_are_nearer_to_one_than_to_another():
    cells = [Cell("CE", on, "mnist") for on in ("MNIST", "MNIST-LT-1", "MNIST-LT-2")]
    rows = classes_of(cells, score=[[0.9, 0.8], [0.8, 0.9], [0.3, 0.6]])
    measured, _ = study(cells, "top1")
    measured = dataclasses.replace(measured, rows=measured.rows[::3], classes=rows)
    found = quantities.nearer("MNIST-LT-1", "MNIST", "MNIST-LT-2")(measured)
    assert found == pytest.approx({"0": 100 * (np.mean([0.5, 0.3]) - np.mean([0.1, 0.1]))})


@pytest.mark.parametrize(
    ("values", "harmless", "expected"),
    [
        ([1.0, 1.2, 0.9], False, "holds"),
        ([1.0, 1.2, 0.9], True, "not contradicted"),
        ([1.0, -1.2, 0.9], False, "undecided"),
        ([1.0, -1.2, 0.9], True, "not contradicted"),
        ([-1.0, -1.2, -0.9], False, "does not hold"),
        ([-1.0, -1.2, -0.9], True, "does not hold"),
        ([2.0, 2.0], False, "undecided"),  # no test is defined
        ([0.0, 0.0], False, "undecided"),
        ([5.0], False, "undecided"),
        ([], False, "not measured"),
    ],
)
def test_verdicts(values, harmless, expected):
    claim = claims.Claim("", "", "table2", negligible=harmless)
    assert claims.verdict(claim, values) == expected


def test_the_page_of_claims_has_all_of_them_and_what_is_measured(tmp_path, capsys):
    target = TARGETS["table5"]
    rows = [
        {"target": "table5", "scale": "cpu", "on": cell.on, "method": cell.method, "seed": seed}
        | {"settings": cell.settings}
        | {"recall_at_1": str(0.3 + (0.01 + 0.001 * int(seed)) * cell.method.startswith("DSB"))}
        for cell in target.cells["cpu"]
        for seed in "012"
    ]
    runs.merge(tmp_path / "table5-cpu.csv", (*runs.FACTS, *runs.MEASURES), rows, runs.KEY)
    assert reproduce.main(["--claims", f"--results={tmp_path}"]) == 0
    assert str(tmp_path / "claims.md") in capsys.readouterr().out
    text = (tmp_path / "claims.md").read_text()
    assert all(f"| {claim.text} |" in text for claim in claims.CLAIMS)
    p = stats.ttest_1samp([1.0, 1.1, 1.2], 0).pvalue
    line = f"| there DSB is above CB (R@1) | 772-773 | table5 (cpu) | +1.1 ± 0.1 points, 3 seeds, p = {p:.3f} | holds |"
    assert line in text
    said = [line.split(" | ")[-1].removesuffix(" |") for line in text.splitlines() if line.startswith("| ")][2:]
    assert said.count("not measured") == len(claims.CLAIMS) - 3
    assert set(said) <= set(claims.VERDICTS)
    assert f"Of these {len(said)} rows: {said.count('holds')} holds," in text
    assert len({(claim.text, claim.lines, claim.target) for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    assert "toolkit" not in text
    recorded = "target,claim,lines,command,found,verdict\nfigure6,it saturates,1,toolkit marginal,by 2 %,holds\n"
    (tmp_path / "toolkit.csv").write_text(recorded)
    assert reproduce.main(["--claims", f"--results={tmp_path}"]) == 0
    assert "| it saturates | 1 | toolkit marginal | by 2 % | holds |" in (tmp_path / "claims.md").read_text()
    assert states.state("figure6", TARGETS["figure6"], None, tmp_path).startswith("measured here, see claims.md; ready")
    assert "measured" not in states.state("figure20", TARGETS["figure20"], None, tmp_path)


@pytest.mark.slow
def test_a_target_is_trained_and_goes_on(small, tmp_path, capsys):
    """Real runs: of digits, two methods."""
    del small
    arguments = ["table2", "--scale=cpu", "--seeds", "0", "--methods", "CE", "DSB-CE", "--set", "sample_space=False"]
    assert command(tmp_path, *arguments) == 0
    with open(tmp_path / "results" / "table2-cpu.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    for method, row in rows.items():
        folder = Job("table2", "cpu", Cell(method, "digits", "digits_lt"), 0).folder(tmp_path / "runs")
        results = json.loads((folder / "results.json").read_text())
        assert float(row["top1"]) == pytest.approx(results["top1"], rel=1e-5)
        assert results["method"] == method
        assert int(row["seconds"]) > 0
    assert rows["CE"]["subset"] == rows["DSB-CE"]["subset"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}
    capsys.readouterr()
    assert command(tmp_path, *arguments) == 0
    assert "0 of 2 runs to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")} == before
