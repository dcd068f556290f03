"""All tables and figures of the paper, by name.

A method's settings are the same wherever it stands. At the scales "gpu" and "cpu" a table whose data is large is the
same study of the same methods on long-tailed CIFAR, and its page says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from dsb_jax.data.long_tail import BALANCED
from reproduction.targets import Cell, Target, join, printed

# Settings of a method, and what it is compared with.
METHODS: dict[str, tuple[str, str | None]] = {
    "CE": ("balancer=uniform", None),
    "CB-CE": ("balancer=class_balanced", "CE"),
    "DSB-CE": ("balancer=dsb", "CE"),
    "DSB-CE-1": ("balancer=dsb,dsb.interclass=False", "CE"),
    "CE+IFL": ("balancer=uniform,objective=ifl", None),
    "DSB-CE+IFL": ("balancer=dsb,objective=ifl", "CE+IFL"),
    "Focal": ("balancer=uniform,loss=focal", None),
    "CB-Focal": ("balancer=class_balanced,loss=focal", "Focal"),
    "DSB-Focal": ("balancer=dsb,loss=focal", "Focal"),
    "DSB-Focal-1": ("balancer=dsb,loss=focal,dsb.interclass=False", "Focal"),
    "LDAM": ("balancer=uniform,loss=ldam", None),
    "LDAM-DRW": ("balancer=class_balanced,loss=ldam", "LDAM"),  # from four fifths of the epochs on
    "DSB-LDAM": ("balancer=dsb,loss=ldam", "LDAM"),
    "BS": ("balancer=uniform,loss=balanced_softmax", None),
    "DSB-BS": ("balancer=dsb,loss=balanced_softmax", "BS"),
    "LADE": ("balancer=uniform,loss=lade", None),
    "DSB-LADE": ("balancer=dsb,loss=lade", "LADE"),
    "BBN": ("balancer=uniform,objective=bbn", None),
    "DIVE": ("balancer=uniform,stages=dive", None),
    "PaCo": ("balancer=uniform,objective=paco", None),
    "DSB-PaCo": ("balancer=dsb,objective=paco", "PaCo"),
    "MBJ": ("balancer=uniform,objective=mbj", None),
    "DSB+MBJ": ("balancer=dsb,objective=mbj", "MBJ"),
    "RIDE": ("balancer=uniform,objective=ride,loss=ldam", None),
    "MBJ+RIDE": ("balancer=uniform,objective=mbj+ride,loss=ldam", None),
    "DSB+RIDE": ("balancer=dsb,objective=ride,loss=ldam", "RIDE"),
    "CDB": ("balancer=class_difficulty", "CE"),
    "LOCE": ("balancer=uniform,objective=loce", None),
    "domain balancing": ("balancer=uniform,objective=domain_balancing", None),
    "cRT": ("balancer=uniform,stages=crt", None),
    "DSB-cRT": ("balancer=dsb,stages=crt", "cRT"),
    "cRT+IFL": ("balancer=uniform,stages=cRT+IFL:crt;objective=ifl", None),
    "LWS": ("balancer=uniform,stages=lws", None),
    "DSB-LWS": ("balancer=dsb,stages=lws", "LWS"),
    "LWS+IFL": ("balancer=uniform,stages=LWS+IFL:lws;objective=ifl", None),
    "Deconfound-TDE": ("balancer=uniform,objective=deconfound_tde", None),
    "BLSoftmax+IFL": ("balancer=uniform,loss=balanced_softmax,objective=ifl", None),
    "DSB-BLSoftmax+IFL": ("balancer=dsb,loss=balanced_softmax,objective=ifl", "BLSoftmax+IFL"),
    "NormSoftmax": ("balancer=uniform,objective=norm_softmax", None),
    "CB-NSM": ("balancer=class_balanced,objective=norm_softmax", "NormSoftmax"),
    "DSB-NSM": ("balancer=dsb,objective=norm_softmax", "NormSoftmax"),
    "SoftTriple": ("balancer=uniform,objective=soft_triple", None),
    "CB-ST": ("balancer=class_balanced,objective=soft_triple", "SoftTriple"),
    "DSB-ST": ("balancer=dsb,objective=soft_triple", "SoftTriple"),
    "Circle": ("balancer=uniform,objective=circle,sampler=pk", None),
}
METHODS["BLSoftmax"] = METHODS["BS"]
METHODS["DSB-BLSoftmax"] = (METHODS["DSB-BS"][0], "BLSoftmax")

SHOTS = {"top1": "top-1", "head": "head", "middle": "middle", "tail": "tail"}
TOP1 = {"top1": "top-1"}
_EYES = {"mean_average_precision": "mean AP"} | TOP1
RECALLS = {"recall_at_1": "R@1", "recall_at_2": "R@2", "nmi": "NMI"}
PEARSON = {"r_N": "N", "r_En": "E_n", "r_W": "W", "r_Sprime": "S′"} | {
    f"r_S_alpha{alpha}": f"S, α = {alpha}" for alpha in ("1", "1.5", "2", "2.5", "3")
}

# The study in little: minutes for a run, on one core.
_LITTLE = "model=resnet8,image_size=16,epochs=15,eval_every=5"
_SMALL = f"{_LITTLE},crop_padding=2,schedule=linear,warmup_epochs=1"
_SMALL_RETRIEVAL = (
    "image_size=None,shorter_side=None,random_crop=none,crop_padding=4,model=resnet8,stem=cifar,frozen_norm=False,"
    "learning_rate=0.001,adam_epsilon=1e-8,epochs=20,milestones=(12,17),eval_every=20,eval_batch_size=500"
)
_SAME_START = "CB's weights begin after epoch 5, as DSB's do; as published, they count from the first step."
_WEIGHTS = f"Begins with ImageNet's weights (--set init_from=FILE). {_SAME_START}"
_RANDOM = "Begins with random weights unless --set init_from=FILE says otherwise; the paper's begin with ImageNet's."
_SMALL_NOTE = (
    "Not the paper's: ResNet-8, 15 epochs and images of 16x16, of long-tailed CIFAR; what weights do in 15 epochs they "
    "may not do in 200, for they begin after five."
)
_HELD_OUT = "CDB holds out a tenth of the training images, to know how difficult classes are."
_CIFAR_NOTE = "Not the paper's dataset: long-tailed CIFAR by the field's recipe, 200 epochs (configs/cifar10_lt.py)."

TABLE2 = (
    *("BBN", "DIVE", "CE", "CB-CE", "DSB-CE", "CE+IFL", "DSB-CE+IFL", "Focal", "CB-Focal", "DSB-Focal", "LDAM"),
    *("DSB-LDAM", "BS", "DSB-BS", "LADE", "DSB-LADE", "PaCo", "DSB-PaCo", "MBJ", "DSB+MBJ", "RIDE", "MBJ+RIDE"),
    "DSB+RIDE",
)
STUDY = (
    *("CE", "CB-CE", "DSB-CE", "Focal", "DSB-Focal", "LDAM", "LDAM-DRW", "DSB-LDAM", "BS", "DSB-BS", "LADE"),
    "DSB-LADE",
)
BACKBONES = {
    "VGG16": "vgg16",
    "BN-Inception": "bn_inception",
    "ResNet-18": "resnet18",
    "ResNet-34": "resnet34",
    "ResNet-50": "resnet50",
    "DenseNet-201": "densenet201",
    "SE-ResNet-50": "seresnet50",
    "ResNeXt-101": "resnext101_32x4d",
}
BALANCED_SETS = ("cifar10", "cifar100", "mini_imagenet")  # of Table 7
RETRIEVAL = ("NormSoftmax", "CB-NSM", "DSB-NSM", "SoftTriple", "CB-ST", "DSB-ST")
WITHOUT_COUNTS = ("NormSoftmax", "DSB-NSM", "SoftTriple", "DSB-ST")


def grid(
    on: str,
    config: str,
    methods: Sequence[str],
    common: str = "",
    table: str = "",
    columns: Mapping[str, str] | None = None,
    **row: str,
) -> tuple[Cell, ...]:
    """A cell for each method; with ``table``, its numbers there, of the row of the method and of ``row``."""
    cells = []
    for method in methods:
        settings, base = METHODS[method]
        numbers = {} if not table or method in _NOT_PRINTED else printed(table, columns or {}, method=method, **row)
        cells.append(Cell(method, on, config, join(common, settings), base if base in methods else None, numbers))
    return tuple(cells)


_NOT_PRINTED = {"CE+IFL"}  # run all the same: DSB is to differ from its base in the balancer alone


def _studied(
    scale: str, imbalances: Sequence[int], methods: Sequence[str] = STUDY, model: str = ""
) -> tuple[Cell, ...]:
    """Methods on long-tailed CIFAR."""
    cells = []
    for imbalance in imbalances:
        for name, config in (("CIFAR-10-LT", "cifar10_lt"), ("CIFAR-100-LT", "cifar100_lt")):
            small = _SMALL if scale == "cpu" else ""
            of_model = f"model={model}" if model else ""
            on = ", ".join(filter(None, (name, f"imbalance {imbalance}", model)))
            for cell in grid(on, config, methods, join(f"imbalance={imbalance}", small, of_model)):
                drw = f"start_epoch={12 if scale == 'cpu' else 160}" if cell.method == "LDAM-DRW" else ""
                cells.append(dataclasses.replace(cell, settings=join(cell.settings, drw)))
    return tuple(cells)


def _shots(prefix: str) -> dict[str, str]:
    return {
        "top1": f"{prefix}_overall",
        "head": f"{prefix}_head",
        "middle": f"{prefix}_middle",
        "tail": f"{prefix}_tail",
    }


def _table1() -> dict[str, tuple[Cell, ...]]:
    """Plain cross-entropy, whose correlations are read off."""
    tail = "balancer=uniform,long_tail=exponential,imbalance=200"
    full = [
        Cell(
            "CE",
            f"{dataset}, {name}",
            "cifar10",
            join(f"model={model}", settings),
            printed=printed("table01", {key: key for key in PEARSON}, dataset=dataset, model=name),
        )
        for dataset, settings in (("CIFAR-10-LT", tail), ("CIFAR-10", "balancer=uniform"))
        for name, model in (("ResNet-18", "resnet18"), ("ResNet-34", "resnet34"))
    ]
    little = [
        Cell("CE", "CIFAR-10-LT, ResNet-8", "cifar10", join(_LITTLE, tail)),
        Cell("CE", "CIFAR-10, ResNet-8", "cifar10", join(_LITTLE, "balancer=uniform")),
    ]
    return {"paper": tuple(full), "gpu": tuple(full), "cpu": tuple(little)}


def _table2() -> dict[str, tuple[Cell, ...]]:
    full = [
        *grid("ImageNet-LT", "imagenet_lt", TABLE2, "", "table02", _shots("in")),
        *grid("iNaturalist 2018", "inat2018", TABLE2, "", "table02", _shots("inat")),
    ]
    networks = [cell for model in ("resnet32", "resnet18") for cell in _studied("gpu", (10, 50, 100, 200), model=model)]
    return {"paper": tuple(full), "gpu": tuple(networks), "cpu": _studied("cpu", (100,))}


def _table3() -> dict[str, tuple[Cell, ...]]:
    cells = []
    for dataset, config, prefix in (
        ("ImageNet", "imagenet2012", "imagenet"),
        ("CIFAR-100", "cifar100_table3", "cifar100"),
    ):
        for name, model in BACKBONES.items():
            for method in ("CE", "DSB-CE"):
                column = {"top1": f"{prefix}_{'ce' if method == 'CE' else 'dsb_ce'}"}
                settings, base = METHODS[method]
                number = printed("table03", column, backbone=name)
                cells.append(Cell(method, f"{dataset}, {name}", config, join(f"model={model}", settings), base, number))
    small = f"{_SMALL},long_tail=balanced"
    little = [
        *grid("CIFAR-10, 500 of each", "cifar10_lt", ("CE", "DSB-CE"), join(small, "images_per_class=500")),
        *grid("CIFAR-100, 50 of each", "cifar100_lt", ("CE", "DSB-CE"), join(small, "images_per_class=50")),
    ]
    of_cifar = tuple(cell for cell in cells if cell.config == "cifar100_table3")
    return {"paper": tuple(cells), "gpu": of_cifar, "cpu": tuple(little)}


def _table4() -> dict[str, tuple[Cell, ...]]:
    cells = []
    for name, config, prefix in (("CUB-2011", "cub2011", "cub"), ("Cars196", "cars196", "cars")):
        columns = _recalls(prefix)
        for dim in ("64", "512"):
            methods = WITHOUT_COUNTS if dim == "64" else ("Circle", *WITHOUT_COUNTS)
            cells += grid(f"{name}, {dim}-d", config, methods, f"embedding={dim}", "table04", columns, dim=dim)
    return {"paper": tuple(cells)}


def _recalls(prefix: str) -> dict[str, str]:
    return {"recall_at_1": f"{prefix}_r1", "recall_at_2": f"{prefix}_r2", "nmi": f"{prefix}_nmi"}


def _tails(name: str, config: str, table: str, imbalances: Sequence[int], common: str = "") -> tuple[Cell, ...]:
    """Retrieval after training on a tail, Tables 5 and 9."""
    cells = []
    for imbalance in imbalances:
        settings = join(f"protocol=retrieval_lt_{imbalance}", common)
        on = f"{name}, imbalance {imbalance}"
        cells += grid(on, config, RETRIEVAL, settings, table, _recalls(f"if{imbalance}"))
    return tuple(cells)


def _table5() -> dict[str, tuple[Cell, ...]]:
    name, config, table, imbalances = "CIFAR-100-LT", "cifar100_retrieval_lt", "table05", (10, 50, 200)
    full = _tails(name, config, table, imbalances)
    return {"paper": full, "gpu": full, "cpu": _tails(name, config, table, imbalances, _SMALL_RETRIEVAL)}


def _table6() -> dict[str, tuple[Cell, ...]]:
    methods = (
        *("cRT", "LWS", "Deconfound-TDE", "BLSoftmax", "BBN", "LDAM", "DSB-LDAM", "BLSoftmax+IFL", "DSB-BLSoftmax"),
        *("DSB-BLSoftmax+IFL", "cRT+IFL", "DSB-cRT", "LWS+IFL", "DSB-LWS"),
    )
    cells = []
    for protocol in ("clt", "glt", "alt"):
        columns = {"top1": f"{protocol}_acc", "precision": f"{protocol}_prec"}
        on = f"MSCOCO-GLT, {protocol.upper()}"
        for cell in grid(on, "coco_glt", methods, f"protocol={protocol}", "table06", columns):
            settings = join(cell.settings, _GLT.get(cell.method, ""))
            cells.append(dataclasses.replace(cell, settings=settings))
    return {"paper": tuple(cells)}


def _table10() -> dict[str, tuple[Cell, ...]]:
    mini, cifar = (
        grid(name, config, WITHOUT_COUNTS, "", "table10", _recalls(prefix))
        for name, config, prefix in (
            ("Mini-ImageNet", "mini_imagenet_retrieval", "miniimagenet"),
            ("CIFAR-100", "cifar100_retrieval", "cifar100"),
        )
    )
    return {"paper": mini + cifar, "gpu": cifar}


def _subsets() -> dict[str, tuple[Cell, ...]]:
    """Figure 2 right: a model for each of Table 7's subsets."""
    cells = {"paper": [], "gpu": [], "cpu": []}
    for name, config, key in (
        ("CIFAR-10", "cifar10", "cifar10"),
        ("CIFAR-100", "cifar100", "cifar100"),
        ("Mini-ImageNet", "mini_imagenet", "mini_imagenet"),
    ):
        for images in BALANCED[key]:
            for network, model in (("ResNet-18", "resnet18"), ("ResNet-34", "resnet34")):
                settings = f"model={model},balancer=uniform,long_tail=balanced,images_per_class={images}"
                cell = Cell("CE", f"{name}, {images} of each, {network}", config, settings)
                cells["paper"].append(cell)
                if key != "mini_imagenet" and network == "ResNet-18":
                    cells["gpu"].append(cell)
            if (key == "cifar10" and images <= 1000) or (key == "cifar100" and images <= 50):
                settings = f"{_LITTLE},balancer=uniform,long_tail=balanced,images_per_class={images}"
                cells["cpu"].append(Cell("CE", f"{name}, {images} of each, ResNet-8", config, settings))
    return {scale: tuple(of_scale) for scale, of_scale in cells.items()}


def _mnist() -> tuple[Cell, ...]:
    return (
        Cell("CE", "MNIST", "mnist", "balancer=uniform"),
        *(Cell("CE", f"MNIST-LT-{k}", "mnist_lt", f"balancer=uniform,long_tail=mnist_lt_{k}") for k in (1, 2)),
    )


def _figure3() -> dict[str, tuple[Cell, ...]]:
    """Class accuracy beside N and S."""
    tail = "balancer=uniform,long_tail=exponential,imbalance=200"
    full = [
        Cell("CE", f"{name}, {network}", config, join(f"model={model}", tail))
        for name, config in (("CIFAR-10-LT", "cifar10"), ("CIFAR-100-LT", "cifar100"))
        for network, model in (("ResNet-18", "resnet18"), ("ResNet-34", "resnet34"))
    ]
    little = Cell("CE", "CIFAR-10-LT, ResNet-8", "cifar10", join(_LITTLE, tail))
    return {"paper": (*_mnist(), *full), "gpu": (*_mnist(), *full), "cpu": (*_mnist(), little)}


def _figure4() -> dict[str, tuple[Cell, ...]]:
    """Whether models fail on the same classes of balanced data."""
    networks = {"ResNet-18": "resnet18", "ResNet-34": "resnet34", "VGG16": "vgg16", "DenseNet-121": "densenet121"}
    full = [
        Cell("CE", f"CIFAR-10, {name}", "cifar10", f"balancer=uniform,model={model}")
        for name, model in networks.items()
    ]
    full += [
        Cell(
            "CE",
            f"CIFAR-10, {m} of each, ResNet-18",
            "cifar10",
            f"model=resnet18,balancer=uniform,long_tail=balanced,images_per_class={m}",
        )
        for m in (500, 1000, 2000)
    ]
    small = f"{_LITTLE},balancer=uniform,long_tail=balanced"
    little = [
        Cell("CE", f"CIFAR-10, {m} of each, {name}", "cifar10", join(small, f"images_per_class={m}", network))
        for m in (500, 1000)
        # At Adam's 0.01 LeNet, which has no normalisation, dies.
        for name, network in (("ResNet-8", ""), ("LeNet", "model=lenet,learning_rate=0.001"))
    ]
    return {"paper": tuple(full), "gpu": tuple(full), "cpu": tuple(little)}


def _figure5() -> dict[str, tuple[Cell, ...]]:
    """When weights begin."""

    def cells(starts: Sequence[int], methods: Sequence[str], common: str) -> tuple[Cell, ...]:
        return tuple(
            Cell(
                f"{method}, n = {n}",
                "CIFAR-10-LT, imbalance 100",
                "cifar10_lt",
                join(common, METHODS[method][0], f"start_epoch={n}"),
                None if n == _PAPERS_START else f"{method}, n = {_PAPERS_START}",
            )
            for method in methods
            for n in starts
        )

    losses = ("DSB-CE", "DSB-Focal", "DSB-LDAM", "DSB-BS")
    full = cells((1, 2, 3, 5, 8, 12, 40, 160), losses, "")
    return {"paper": full, "gpu": full, "cpu": cells((1, 2, 3, 5, 8, 12), ("DSB-CE", "DSB-BS"), _SMALL)}


# What Tang et al. train otherwise than the others (the code of MSCOCO-GLT, algorithms_config.yaml), with DSB likewise.
_GLT_LDAM = "weight_decay=2e-4,schedule=step,milestones=(80,90),decay_factor=0.01,momentum=0.9"
_GLT = {
    "LDAM": f"{_GLT_LDAM},balancer=class_balanced,start_epoch=80",
    "DSB-LDAM": _GLT_LDAM,
    "BBN": "schedule=step,milestones=(60,80)",
    "Deconfound-TDE": "deconfound_tde.alpha=1.0",
    "LWS": "stages=lws;;epochs=10",
    "LWS+IFL": "stages=LWS+IFL:lws;objective=ifl;epochs=10",
    "DSB-LWS": "stages=lws;;epochs=10",
}

# One setting of DSB-CE at a time; the defaults are DSB-CE itself.
ABLATIONS = {
    "normalize": ("sum", "expected", "none"),
    "epsilon": ("0.1", "10.0", "1000.0"),  # the paper's text has 1,000, its formulas none
    "alpha": ("1.0", "1.5", "3.0"),
    "interclass": ("False",),
    "dim": ("16", "32"),
    "power": ("2.0", "3.0", "6.0"),
}
_PAPERS_START = 5
STARTS = (1, 8, 12)
OFFSETS = ("0.1", "0.3", "1.0")  # τ of volumes in the place of counts, and of weights; not the paper's


def _ablation() -> dict[str, tuple[Cell, ...]]:
    """What of DSB matters, on long-tailed CIFAR with imbalance 100."""

    def cells(scale: str, model: str) -> tuple[Cell, ...]:
        found = list(_studied(scale, (100,), ("CE", "CB-CE", "DSB-CE"), model))
        for plain in [cell for cell in found if cell.method == "DSB-CE"]:
            varied = {f"{key} = {value}": f"dsb.{key}={value}" for key, values in ABLATIONS.items() for value in values}
            varied |= {f"n = {start}": f"start_epoch={start}" for start in STARTS}
            varied |= {f"offsets, τ = {tau}": f"dsb.power=0.0,dsb.logit_adjustment={tau}" for tau in OFFSETS}
            for name, setting in varied.items():
                method = f"DSB-CE, {name}"
                found.append(Cell(method, plain.on, plain.config, join(plain.settings, setting), "DSB-CE"))
        return tuple(found)

    return {"gpu": cells("gpu", "resnet32"), "cpu": cells("cpu", "")}


def _eyes(dataset: str, protocol: str, networks: Mapping[str, str], methods: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(
        cell
        for name, model in networks.items()
        for cell in grid(f"{dataset}, {name}", "odir", methods, join(f"model={model}", protocol))
    )


def _scenes(dataset: str, config: str) -> tuple[Cell, ...]:
    networks = {"VGG-16": "vgg16", "GoogLeNet": "googlenet", "ResNet-34": "resnet34"}
    return tuple(
        cell
        for name, model in networks.items()
        for cell in grid(f"{dataset}, {name}", config, ("CE", "DSB-CE"), f"model={model}")
    )


def _of_imagenet_lt(methods: Sequence[str], also: Sequence[str]) -> dict[str, tuple[Cell, ...]]:
    """Figures 17 and 18, which have no numbers."""
    chosen = (*methods, *also)
    full = grid("ImageNet-LT", "imagenet_lt", chosen)
    return {
        "paper": full,
        "gpu": _studied("gpu", (100,), chosen, "resnet32"),
        "cpu": _studied("cpu", (100,), chosen),
    }


def _toolkit(command: str, source: str, *options: str, out: str) -> tuple[str, ...]:
    return ("-m", "dsb_jax.toolkit", command, source, *options, "--out", f"{{out}}/{out}")


def _schematic(title: str, lines: str) -> Target:
    return Target(title, lines, reason="an illustration, which has no numbers")


def _targets() -> dict[str, Target]:
    eyes = {"ResNet-50": "resnet50"}
    more_eyes = {"ResNet-50": "resnet50", "VGG-16": "vgg16", "ResNet-18": "resnet18", "SE-ResNet-50": "seresnet50"}
    of_cifar = {"cpu": _SMALL_NOTE, "gpu": _CIFAR_NOTE}
    marginal = tuple(_toolkit("marginal", name, "--space", "sample", out=name) for name in BALANCED_SETS)
    subsets = Target(
        "sum of volumes and top-1 by number of samples",
        "405-445, 1038-1075, 2001-2034",
        _subsets(),
        {"top1": "top-1", "sum_of_volumes": "sum of S′"},
        notes={
            "cpu": "ResNet-8, 15 epochs and images of 16x16, of the smaller subsets.",
            "gpu": "Without Mini-ImageNet and ResNet-34.",
        },
    )
    curves = Target("volume by number of samples", "397-440, 1331-1373", commands=marginal, needs=BALANCED_SETS)
    return {
        "table1": Target(
            "Pearson's r of class accuracy with N, E_n, W, S′ and S",
            "419-497, 1045-1075",
            _table1(),
            PEARSON,
            notes={"cpu": "ResNet-8, 15 epochs and images of 16x16 in the place of ResNet-18, ResNet-34 and 32x32."},
        ),
        "table2": Target("long-tailed recognition", "643-690", _table2(), SHOTS, notes=of_cifar),
        "table3": Target(
            "data that is balanced by number",
            "692-716",
            _table3(),
            TOP1,
            notes={
                "cpu": "Not the paper's: ResNet-8, 15 epochs of SGD, images of 16x16, balanced subsets, no mixing.",
                "gpu": "CIFAR-100 alone.",
            },
        ),
        "table4": Target(
            "retrieval: CUB-2011 and Cars196",
            "718-751, 1116-1137",
            _table4(),
            RECALLS,
            notes={"paper": _WEIGHTS},
        ),
        "table5": Target(
            "retrieval after training on a long tail: CIFAR-100",
            "753-775, 1135-1142",
            _table5(),
            RECALLS,
            notes={
                "paper": _WEIGHTS,
                "gpu": _WEIGHTS,
                "cpu": "ResNet-8 from random weights, images of 32x32, 20 epochs, where the paper has BN-Inception "
                f"with ImageNet's weights, 224x224 and 50: compare differences, not levels. {_SAME_START}",
            },
        ),
        "table6": Target(
            "generalized long tails: MSCOCO-GLT",
            "776-850",
            _table6(),
            {"top1": "accuracy", "precision": "precision"},
        ),
        "table7": Target(
            "numbers of the sub-datasets", "1038-1075", reason="counts alone; figure2-right trains on them"
        ),
        "table8": Target("numbers of MNIST-LT-1 and -2", "1090-1101", reason="counts alone; figure3 trains on them"),
        "table9": Target(
            "retrieval after training on a long tail: Cars196",
            "1144-1181",
            {"paper": _tails("Cars196-LT", "cars196_lt", "table09", (10, 20, 50))},
            RECALLS,
            notes={"paper": _WEIGHTS},
        ),
        "table10": Target(
            "retrieval: Mini-ImageNet and CIFAR-100",
            "1144-1154, 1183-1198",
            _table10(),
            RECALLS,
            notes={"paper": _WEIGHTS, "gpu": f"CIFAR-100 alone. {_WEIGHTS}"},
        ),
        "table11": Target("memory and speed", "1550-1570", commands=(("launch/benchmark.py", "table11"),)),
        "table12": Target(
            "superclasses by volume",
            "2021-2090",
            {"paper": (Cell("CE", "seven classes", "imagenet_hierarchy", "balancer=uniform"),)},
            TOP1,
            notes={"paper": "The network alone; python -m dsb_jax.toolkit hierarchy has ratios of volumes."},
        ),
        "figure2-left": curves,
        "figure2-right": subsets,
        "figure3": Target(
            "class accuracy beside N and S",
            "499-530, 1077-1101",
            _figure3(),
            TOP1 | PEARSON,
            notes={
                "cpu": "MNIST as configs/mnist.py has it; CIFAR-10-LT with ResNet-8, 15 epochs, 16x16; no CIFAR-100-LT."
            },
        ),
        "figure4": Target(
            "the same weak classes in all models",
            "506-546",
            _figure4(),
            TOP1 | PEARSON,
            notes={"cpu": "ResNet-8 and LeNet, 15 epochs and images of 16x16, of balanced subsets of CIFAR-10."},
        ),
        "figure5": Target(
            "when weights begin",
            "607-620, 1501-1504",
            _figure5(),
            SHOTS,
            notes={"cpu": _SMALL_NOTE, "gpu": _CIFAR_NOTE, "paper": _CIFAR_NOTE + " The paper's are not stated."},
        ),
        "figure6": Target(
            "scales of point clouds that grow",
            "1018-1034",
            commands=(_toolkit("geometry", "{input}", out="pointclouds"),),
            input="a folder of point clouds, or a pattern of files: bunny, dragon and armadillo in .ply",
        ),
        "figure7": Target(
            "scale and number of samples by class",
            "1103-1114",
            commands=tuple(
                _toolkit("scales", name, "--space", "sample", out=name)
                for name in ("cub2011", "cars196", "mini_imagenet")
            ),
            needs=("cub2011", "cars196", "mini_imagenet"),
        ),
        "figure8": Target(
            "numbers of the long tails", "1135-1146", reason="counts alone; tables 5 and 9 train on them"
        ),
        "figure9": _schematic("eight fundus images", "1205-1212"),
        "figure10": Target(
            "numbers and scales of OIA-ODIR",
            "1214-1236",
            commands=(_toolkit("scales", "odir", "--space", "sample", out="odir"),),
            needs=("odir",),
        ),
        "figure11": Target(
            "eyes, a long tail",
            "1200-1245",
            {
                "paper": _eyes(
                    "OIA-ODIR", "", eyes, ("CE", "DSB-CE", "BS", "DSB-BS", "Focal", "DSB-Focal", "LDAM", "DSB-LDAM")
                )
            },
            _EYES,
            notes={"paper": _RANDOM},
        ),
        "figure12": Target(
            "eyes, balanced by number",
            "1247-1268",
            {"paper": _eyes("OIA-ODIR-B", "protocol=balanced", more_eyes, ("CE", "DSB-CE"))},
            _EYES,
            notes={"paper": _RANDOM},
        ),
        "figure13": _schematic("seven scenes", "1280-1289"),
        "figure14": Target("scenes from above: RSSCN7", "1270-1312", {"paper": _scenes("RSSCN7", "rsscn7")}, TOP1),
        "figure15": Target(
            "scenes from above: RESISC45", "1283-1322", {"paper": _scenes("RESISC45", "resisc45")}, TOP1
        ),
        "figure16": _schematic("the three stages", "1467-1500"),
        "figure17": Target(
            "without interference",
            "1785-1835",
            _of_imagenet_lt(("CE", "DSB-CE-1", "DSB-CE", "Focal"), ("DSB-Focal-1", "DSB-Focal")),
            SHOTS,
            notes=of_cifar,
        ),
        "figure18": Target(
            "beside measures of difficulty",
            "1837-1877",
            _of_imagenet_lt(("CE", "CDB", "DSB-CE"), ("LOCE", "domain balancing")),
            SHOTS,
            notes={scale: f"{note} {_HELD_OUT}".strip() for scale, note in (of_cifar | {"paper": ""}).items()},
        ),
        "figure19": Target(
            "thirds of the classes by semantic scale",
            "1879-1894",
            {
                "paper": tuple(
                    cell for cell in _table3()["paper"] if cell.on in ("ImageNet, VGG16", "ImageNet, ResNet-18")
                ),
                "cpu": _table3()["cpu"],
            },
            {"top1": "top-1", "low_third": "smallest S", "middle_third": "middle", "high_third": "largest S"},
            notes=dict.fromkeys(("paper", "cpu"), "Thirds are by each run's own scales.")
            | {"cpu": "CIFAR, as table3 at this scale. Thirds are by each run's own scales."},
        ),
        "figure20": Target(
            "pizza sampling",
            "1898-1927",
            commands=tuple(
                _toolkit("select", "cifar10", "--space", "sample", "--method", method, out=method)
                for method in ("pizza", "greedy", "random")
            ),
            needs=("cifar10",),
        ),
        "ablation": Target(
            "what of DSB matters; no figure of the paper",
            "374, 496, 569-577, 1459-1463, 1785-1835",
            _ablation(),
            SHOTS,
            notes=of_cifar,
        ),
        "figure22": Target("figure 2, enlarged", "2001-2034", reason="the same as figure2-left and figure2-right"),
        "figure23": _schematic("a hierarchy of classes", "2026-2050"),
    }


TARGETS = _targets()
