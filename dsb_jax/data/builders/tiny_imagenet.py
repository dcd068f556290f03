"""Tiny ImageNet."""

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles, image_files
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

_COUNTS = {"train": specs.alike(500, 200), "val": specs.alike(50, 200)}


class TinyImagenet(FromFiles, skip_registration=True):
    """110,000 images of 200 classes of ImageNet, 64x64 (Le and Yang, 2015); those of its test have no labels.

    Classes are in the order of ``wnids.txt``, which is not sorted, and called by their first word in ``words.txt``.
    """

    name = "tiny_imagenet"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder tiny-imagenet-200 (wnids.txt, words.txt, train/ and val/), or the folder of tiny-imagenet-200.zip, "
        "of cs231n.stanford.edu/tiny-imagenet-200.zip"
    )
    image_shape = (64, 64, 3)
    images_per_split = {split: int(counts.sum()) for split, counts in _COUNTS.items()}  # noqa: RUF012
    images_per_class = _COUNTS

    def _index(self, archive: Archive) -> Index:
        archive = archive.within("wnids.txt", "tiny-imagenet-200")
        wnids = archive.text("wnids.txt").split()
        words = dict(line.split("\t", 1) for line in archive.text("words.txt").splitlines() if "\t" in line)
        names = [f"{wnid} {words.get(wnid, '').split(',')[0]}".strip() for wnid in wnids]
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        if len(labels) < len(wnids):
            repeated = next(wnid for label, wnid in enumerate(wnids) if labels[wnid] != label)
            raise ValueError(f"{archive}/wnids.txt lists {repeated} more than once")
        if lacking := [wnid for wnid in wnids if not archive.has(f"train/{wnid}/images")]:
            more = f", nor those of {len(lacking) - 1} more classes of wnids.txt" if len(lacking) > 1 else ""
            raise FileNotFoundError(f"the folder train/{lacking[0]}/images is not in {archive}{more}")
        if not archive.has("val/images"):
            raise FileNotFoundError(f"the folder val/images is not in {archive}")
        train = [
            Item(path, label) for wnid, label in labels.items() for path in image_files(archive, f"train/{wnid}/images")
        ]
        val = []
        for line, text in enumerate(archive.text("val/val_annotations.txt").splitlines(), start=1):
            if not text.strip():
                continue
            file, _, rest = text.partition("\t")
            wnid = rest.partition("\t")[0]
            if wnid not in labels:
                where = f"{archive}/val/val_annotations.txt: line {line}"
                raise ValueError(f"{where} must be a file and a class of wnids.txt, got {text!r}")
            val.append(Item(f"val/images/{file}", labels[wnid]))
        return Index(names, {"train": train, "val": val}, archive)


SPECS = (
    Spec(
        name="tiny_imagenet",
        title="Tiny ImageNet",
        stored_as="tiny_imagenet",
        protocols={
            "classification": Protocol(
                "the published split; its test has no labels",
                {split: Part((split,), counts) for split, counts in _COUNTS.items()},
                evaluation="val",
            )
        },
        image_shape=(64, 64, 3),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        licence="ImageNet's: for non-commercial research and education",
        gigabytes=0.25,
        class_names=specs.named("tiny_imagenet"),
    ),
)
