"""The cells of every table and figure that trains: methods on datasets, by scale.

A method's settings are the same wherever it stands. At the scales "gpu" and "cpu" a table whose data is large is the
same study of the same methods on long-tailed CIFAR, and its page says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from dsb_jax.data.long_tail import BALANCED
from reproduction.targets import Cell, join, printed

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
RECALLS = {"recall_at_1": "R@1", "recall_at_2": "R@2", "nmi": "NMI"}
PEARSON = {"r_N": "N", "r_En": "E_n", "r_W": "W", "r_Sprime": "S′"} | {
    f"r_S_alpha{alpha}": f"S, α = {alpha}" for alpha in ("1", "1.5", "2", "2.5", "3")
}

# The study in little: minutes for a run, on one core.
_LITTLE = "model=resnet8,image_size=16,epochs=15,eval_every=5"
_SMALL = f"{_LITTLE},crop_padding=2,schedule=linear,warmup_epochs=1"
_DEFERRED = {"cpu": 12, "gpu": 160}  # the epoch after which DRW re-weights, four fifths of all
_SMALL_RETRIEVAL = (
    "image_size=None,shorter_side=None,random_crop=none,crop_padding=4,model=resnet8,stem=cifar,frozen_norm=False,"
    "learning_rate=0.001,adam_epsilon=1e-8,epochs=20,milestones=(12,17),eval_every=20,eval_batch_size=500"
)
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
                drw = f"start_epoch={_DEFERRED[scale]}" if cell.method == "LDAM-DRW" else ""
                cells.append(dataclasses.replace(cell, settings=join(cell.settings, drw)))
    return tuple(cells)


def _shots(prefix: str) -> dict[str, str]:
    return {
        "top1": f"{prefix}_overall",
        "head": f"{prefix}_head",
        "middle": f"{prefix}_middle",
        "tail": f"{prefix}_tail",
    }


def table1() -> dict[str, tuple[Cell, ...]]:
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


def table2() -> dict[str, tuple[Cell, ...]]:
    full = [
        *grid("ImageNet-LT", "imagenet_lt", TABLE2, "", "table02", _shots("in")),
        *grid("iNaturalist 2018", "inat2018", TABLE2, "", "table02", _shots("inat")),
    ]
    networks = [cell for model in ("resnet32", "resnet18") for cell in _studied("gpu", (10, 50, 100, 200), model=model)]
    return {"paper": tuple(full), "gpu": tuple(networks), "cpu": _studied("cpu", (100,))}


def table3() -> dict[str, tuple[Cell, ...]]:
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


def table4() -> dict[str, tuple[Cell, ...]]:
    cells = []
    for name, config, prefix in (("CUB-2011", "cub2011", "cub"), ("Cars196", "cars196", "cars")):
        columns = _recalls(prefix)
        for dim in ("64", "512"):
            methods = WITHOUT_COUNTS if dim == "64" else ("Circle", *WITHOUT_COUNTS)
            cells += grid(f"{name}, {dim}-d", config, methods, f"embedding={dim}", "table04", columns, dim=dim)
    return {"paper": tuple(cells)}


def _recalls(prefix: str) -> dict[str, str]:
    return {"recall_at_1": f"{prefix}_r1", "recall_at_2": f"{prefix}_r2", "nmi": f"{prefix}_nmi"}


def tails(name: str, config: str, table: str, imbalances: Sequence[int], common: str = "") -> tuple[Cell, ...]:
    """Retrieval after training on a tail, Tables 5 and 9."""
    cells = []
    for imbalance in imbalances:
        settings = join(f"protocol=retrieval_lt_{imbalance}", common)
        on = f"{name}, imbalance {imbalance}"
        cells += grid(on, config, RETRIEVAL, settings, table, _recalls(f"if{imbalance}"))
    return tuple(cells)


def table5() -> dict[str, tuple[Cell, ...]]:
    name, config, table, imbalances = "CIFAR-100-LT", "cifar100_retrieval_lt", "table05", (10, 50, 200)
    full = tails(name, config, table, imbalances)
    return {"paper": full, "gpu": full, "cpu": tails(name, config, table, imbalances, _SMALL_RETRIEVAL)}


def table6() -> dict[str, tuple[Cell, ...]]:
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


def table10() -> dict[str, tuple[Cell, ...]]:
    mini, cifar = (
        grid(name, config, WITHOUT_COUNTS, "", "table10", _recalls(prefix))
        for name, config, prefix in (
            ("Mini-ImageNet", "mini_imagenet_retrieval", "miniimagenet"),
            ("CIFAR-100", "cifar100_retrieval", "cifar100"),
        )
    )
    return {"paper": mini + cifar, "gpu": cifar}


def subsets() -> dict[str, tuple[Cell, ...]]:
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


def figure3() -> dict[str, tuple[Cell, ...]]:
    """Class accuracy beside N and S."""
    tail = "balancer=uniform,long_tail=exponential,imbalance=200"
    full = [
        Cell("CE", f"{name}, {network}", config, join(f"model={model}", tail))
        for name, config in (("CIFAR-10-LT", "cifar10"), ("CIFAR-100-LT", "cifar100"))
        for network, model in (("ResNet-18", "resnet18"), ("ResNet-34", "resnet34"))
    ]
    little = Cell("CE", "CIFAR-10-LT, ResNet-8", "cifar10", join(_LITTLE, tail))
    return {"paper": (*_mnist(), *full), "gpu": (*_mnist(), *full), "cpu": (*_mnist(), little)}


def figure4() -> dict[str, tuple[Cell, ...]]:
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


def figure5() -> dict[str, tuple[Cell, ...]]:
    """When weights begin."""

    def cells(scale: str, starts: Sequence[int], methods: Sequence[str], model: str = "") -> tuple[Cell, ...]:
        return tuple(
            _varied(
                plain,
                f"n = {n}",
                f"start_epoch={n}",
                None if n == _PAPERS_START else f"{plain.method}, n = {_PAPERS_START}",
            )
            for plain in _studied(scale, (100,), methods, model)
            if plain.config == "cifar10_lt"
            for n in starts
        )

    full = cells("gpu", (1, 2, 3, 5, 8, 12, 40, 160), ("DSB-CE", "DSB-Focal", "DSB-LDAM", "DSB-BS"), "resnet32")
    return {"paper": full, "gpu": full, "cpu": cells("cpu", (1, 2, 3, 5, 8, 12), ("DSB-CE", "DSB-BS"))}


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
    "history": ("0.25", "0.5", "2.0"),  # of the pool, in epochs
    "power": ("2.0", "3.0", "6.0"),
}
_PAPERS_START = 5
STARTS = (1, 8, 12)
OFFSETS = ("0.5", "1.0", "1.5")  # τ of coding lengths in the place of counts, and of weights; not the paper's


def ablation() -> dict[str, tuple[Cell, ...]]:
    """What of DSB matters, on long-tailed CIFAR with imbalance 100; of offsets, on balanced CIFAR too."""

    def cells(scale: str, model: str) -> list[Cell]:
        found = list(_studied(scale, (100,), ("CE", "CB-CE", "DSB-CE", "BS"), model))
        for plain in [cell for cell in found if cell.method == "DSB-CE"]:
            varied = {f"{key} = {value}": f"dsb.{key}={value}" for key, values in ABLATIONS.items() for value in values}
            varied |= {f"n = {start}": f"start_epoch={start}" for start in STARTS}
            found += [_varied(plain, name, setting, "DSB-CE") for name, setting in varied.items()]
            found += [_with_offsets(plain, tau) for tau in OFFSETS]
            early = _with_offsets(plain, "1.0")
            found.append(_varied(early, "n = 1", "start_epoch=1", "CE"))
        counted = [cell for cell in found if cell.method == "CB-CE"]
        for start in (_PAPERS_START, _DEFERRED[scale]):  # as DSB's weights begin; as those of LDAM-DRW
            found += [_varied(plain, f"n = {start}", f"start_epoch={start}", "CE") for plain in counted]
        return found

    balanced = list(table3()["cpu"])
    offsets = [_with_offsets(cell, "1.0") for cell in balanced if cell.method == "DSB-CE"]
    return {"gpu": tuple(cells("gpu", "resnet32")), "cpu": (*cells("cpu", ""), *balanced, *offsets)}


def _varied(plain: Cell, name: str, setting: str, base: str | None) -> Cell:
    return Cell(f"{plain.method}, {name}", plain.on, plain.config, join(plain.settings, setting), base)


def _with_offsets(plain: Cell, tau: str) -> Cell:
    return _varied(plain, f"offsets, τ = {tau}", f"dsb.power=0.0,dsb.logit_adjustment={tau}", "CE")


def eyes(dataset: str, protocol: str, networks: Mapping[str, str], methods: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(
        cell
        for name, model in networks.items()
        for cell in grid(f"{dataset}, {name}", "odir", methods, join(f"model={model}", protocol))
    )


def scenes(dataset: str, config: str) -> tuple[Cell, ...]:
    networks = {"VGG-16": "vgg16", "GoogLeNet": "googlenet", "ResNet-34": "resnet34"}
    return tuple(
        cell
        for name, model in networks.items()
        for cell in grid(f"{dataset}, {name}", config, ("CE", "DSB-CE"), f"model={model}")
    )


def of_imagenet_lt(methods: Sequence[str], also: Sequence[str]) -> dict[str, tuple[Cell, ...]]:
    """Figures 17 and 18, which have no numbers."""
    chosen = (*methods, *also)
    full = grid("ImageNet-LT", "imagenet_lt", chosen)
    return {
        "paper": full,
        "gpu": _studied("gpu", (100,), chosen, "resnet32"),
        "cpu": _studied("cpu", (100,), chosen),
    }
