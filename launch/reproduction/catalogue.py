"""All tables and figures of the paper, by name: what each one is, and what makes it."""

from reproduction import plots, studies
from reproduction.targets import Cell, Target

_EYES = {"mean_average_precision": "mean AP"} | studies.TOP1
_SAME_START = "CB's weights begin after epoch 5, as DSB's do; as published, they count from the first step."
_WEIGHTS = f"Begins with ImageNet's weights (--set init_from=FILE). {_SAME_START}"
_RANDOM = "Begins with random weights unless --set init_from=FILE says otherwise; the paper's begin with ImageNet's."
_SMALL_NOTE = (
    "Not the paper's: ResNet-8, 15 epochs and images of 16x16, of long-tailed CIFAR; what weights do in 15 epochs they "
    "may not do in 200, for they begin after five."
)
_HELD_OUT = (
    "CDB holds out a tenth of the training images, to know how difficult classes are. Domain balancing has CosFace's "
    "margin and scale, 0.35 and 30, for no source gives its own."
)
_CIFAR_NOTE = "Not the paper's dataset: long-tailed CIFAR by the field's recipe of 200 epochs (configs/cifar10_lt.py)."
_OF_CIFAR = {"cpu": _SMALL_NOTE, "gpu": _CIFAR_NOTE}
_MORE_EYES = {"ResNet-50": "resnet50", "VGG-16": "vgg16", "ResNet-18": "resnet18", "SE-ResNet-50": "seresnet50"}


def _toolkit(command: str, source: str, *options: str, out: str) -> tuple[str, ...]:
    return ("-m", "dsb_jax.toolkit", command, source, *options, "--out", f"{{out}}/{out}")


def _schematic(title: str, lines: str) -> Target:
    return Target(title, lines, reason="an illustration, which has no numbers")


TARGETS: dict[str, Target] = {
    "table1": Target(
        "Pearson's r of class accuracy with N, E_n, W, S′ and S",
        "419-497, 1045-1075",
        studies.table1(),
        studies.PEARSON,
        notes={"cpu": "ResNet-8, 15 epochs and images of 16x16 in the place of ResNet-18, ResNet-34 and 32x32."},
    ),
    "table2": Target("long-tailed recognition", "643-690", studies.table2(), studies.SHOTS, notes=_OF_CIFAR),
    "table3": Target(
        "data that is balanced by number",
        "692-716",
        studies.table3(),
        studies.TOP1,
        notes={
            "cpu": "Not the paper's: ResNet-8, 15 epochs of SGD, images of 16x16, balanced subsets, no mixing.",
            "gpu": "CIFAR-100 alone.",
        },
    ),
    "table4": Target(
        "retrieval: CUB-2011 and Cars196",
        "718-751, 1116-1137",
        studies.table4(),
        studies.RECALLS,
        notes={"paper": _WEIGHTS},
    ),
    "table5": Target(
        "retrieval after training on a long tail: CIFAR-100",
        "753-775, 1135-1142",
        studies.table5(),
        studies.RECALLS,
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
        studies.table6(),
        {"top1": "accuracy", "precision": "precision"},
    ),
    "table7": Target("numbers of the sub-datasets", "1038-1075", reason="counts alone; figure2-right trains on them"),
    "table8": Target("numbers of MNIST-LT-1 and -2", "1090-1101", reason="counts alone; figure3 trains on them"),
    "table9": Target(
        "retrieval after training on a long tail: Cars196",
        "1144-1181",
        {"paper": studies.tails("Cars196-LT", "cars196_lt", "table09", (10, 20, 50))},
        studies.RECALLS,
        notes={"paper": _WEIGHTS},
    ),
    "table10": Target(
        "retrieval: Mini-ImageNet and CIFAR-100",
        "1144-1154, 1183-1198",
        studies.table10(),
        studies.RECALLS,
        notes={"paper": _WEIGHTS, "gpu": f"CIFAR-100 alone. {_WEIGHTS}"},
    ),
    "table11": Target("memory and speed", "1550-1570", commands=(("launch/benchmark.py", "table11"),)),
    "table12": Target(
        "superclasses by volume",
        "2021-2090",
        {"paper": (Cell("CE", "seven classes", "imagenet_hierarchy", "balancer=uniform"),)},
        studies.TOP1,
        notes={"paper": "The network alone; python -m dsb_jax.toolkit hierarchy has ratios of volumes."},
    ),
    "figure2-left": Target(
        "volume by number of samples",
        "397-440, 1331-1373",
        commands=tuple(_toolkit("marginal", name, "--space", "sample", out=name) for name in studies.BALANCED_SETS),
        needs=studies.BALANCED_SETS,
    ),
    "figure2-right": Target(
        "sum of volumes and top-1 by number of samples",
        "405-445, 1038-1075, 2001-2034",
        studies.subsets(),
        {"top1": "top-1", "sum_of_volumes": "sum of S′"},
        notes={
            "cpu": "ResNet-8, 15 epochs and images of 16x16, of the smaller subsets.",
            "gpu": "Without Mini-ImageNet and ResNet-34.",
        },
        plots=(plots.by_number,),
    ),
    "figure3": Target(
        "class accuracy beside N and S",
        "499-530, 1077-1101",
        studies.figure3(),
        studies.TOP1 | studies.PEARSON,
        notes={
            "cpu": "MNIST as configs/mnist.py has it; CIFAR-10-LT with ResNet-8, 15 epochs, 16x16; no CIFAR-100-LT."
        },
        plots=(plots.beside_scale,),
    ),
    "figure4": Target(
        "the same weak classes in all models",
        "506-546",
        studies.figure4(),
        studies.TOP1 | studies.PEARSON,
        notes={"cpu": "ResNet-8 and LeNet, 15 epochs and images of 16x16, of balanced subsets of CIFAR-10."},
        plots=(plots.weak_classes,),
    ),
    "figure5": Target(
        "when weights begin",
        "607-620, 1501-1504",
        studies.figure5(),
        studies.SHOTS,
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
            _toolkit("scales", name, "--space", "sample", out=name) for name in ("cub2011", "cars196", "mini_imagenet")
        ),
        needs=("cub2011", "cars196", "mini_imagenet"),
    ),
    "figure8": Target("numbers of the long tails", "1135-1146", reason="counts alone; tables 5 and 9 train on them"),
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
            "paper": studies.eyes(
                "OIA-ODIR",
                "",
                {"ResNet-50": "resnet50"},
                ("CE", "DSB-CE", "BS", "DSB-BS", "Focal", "DSB-Focal", "LDAM", "DSB-LDAM"),
            )
        },
        _EYES,
        notes={"paper": _RANDOM},
    ),
    "figure12": Target(
        "eyes, balanced by number",
        "1247-1268",
        {"paper": studies.eyes("OIA-ODIR-B", "protocol=balanced", _MORE_EYES, ("CE", "DSB-CE"))},
        _EYES,
        notes={"paper": _RANDOM},
    ),
    "figure13": _schematic("seven scenes", "1280-1289"),
    "figure14": Target(
        "scenes from above: RSSCN7", "1270-1312", {"paper": studies.scenes("RSSCN7", "rsscn7")}, studies.TOP1
    ),
    "figure15": Target(
        "scenes from above: RESISC45", "1283-1322", {"paper": studies.scenes("RESISC45", "resisc45")}, studies.TOP1
    ),
    "figure16": _schematic("the three stages", "1467-1500"),
    "figure17": Target(
        "without interference",
        "1785-1835",
        studies.of_imagenet_lt(("CE", "DSB-CE-1", "DSB-CE", "Focal"), ("DSB-Focal-1", "DSB-Focal")),
        studies.SHOTS,
        notes=_OF_CIFAR,
    ),
    "figure18": Target(
        "beside measures of difficulty",
        "1837-1877",
        studies.of_imagenet_lt(("CE", "CDB", "DSB-CE"), ("LOCE", "domain balancing")),
        studies.SHOTS,
        notes={scale: f"{note} {_HELD_OUT}".strip() for scale, note in (_OF_CIFAR | {"paper": ""}).items()},
    ),
    "figure19": Target(
        "thirds of the classes by semantic scale",
        "1879-1894",
        {
            "paper": tuple(
                cell for cell in studies.table3()["paper"] if cell.on in ("ImageNet, VGG16", "ImageNet, ResNet-18")
            ),
            "cpu": studies.table3()["cpu"],
        },
        {"low_third": "smallest S", "middle_third": "middle", "high_third": "largest S", "top1": "top-1"},
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
        studies.ablation(),
        studies.SHOTS,
        notes=_OF_CIFAR,
    ),
    "figure22": Target("figure 2, enlarged", "2001-2034", reason="the same as figure2-left and figure2-right"),
    "figure23": _schematic("a hierarchy of classes", "2026-2050"),
}
