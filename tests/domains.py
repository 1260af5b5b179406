"""The paper's datasets in miniature, in the layout in which they come."""

import csv
import io
import tarfile

import numpy as np
from PIL import Image

CHEXPERT_FINDINGS = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
CHEXPERT_COLUMNS = [
    "Path",
    "Sex",
    "Age",
    "Frontal/Lateral",
    "AP/PA",
    *CHEXPERT_FINDINGS,
]


def photograph(seed, height, width, channels=3):
    """Returns a smooth picture, uint8 [height, width, channels]."""
    phase = np.random.RandomState(seed).uniform(0, 6, (2, 1, 1, channels))
    y, x = np.mgrid[:height, :width][..., None] / 11
    waves = np.sin(y + phase[0]) + np.cos(x * (1 + seed % 3) + phase[1])
    return np.round(127.5 + 60 * waves).astype(np.uint8)


def x_ray(seed, height=390, width=320):
    """Returns a chest, roughly: gray, dark margins, noise; uint8 [h, w, 1]."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    body = 150 * np.exp(-2 * (x**2 + y**2))
    lungs = 90 * np.exp(-18 * ((np.abs(x) - 0.4) ** 2 + 0.3 * y**2))
    noise = rng.normal(0, 6, x.shape)
    image = 25 + body - lungs + noise + rng.uniform(-10, 10)
    return np.clip(image, 0, 255).astype(np.uint8)[..., None]


def jpeg(array, quality=90):
    """Returns a JPEG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(np.squeeze(array)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_chexpert(root, count, valid=4):
    """Writes CheXpert-v1.0-small with `count` rows; returns its folder.

    Labels are drawn from the values that occur: "", 0.0, 1.0 and -1.0.
    """
    folder = root / "CheXpert-v1.0-small"
    rng = np.random.RandomState(0)
    for name, number in (("train", count), ("valid", valid)):
        rows = []
        for i in range(number):
            path = f"{name}/patient{i:05d}/study1/view1_frontal.jpg"
            (folder / path).parent.mkdir(parents=True)
            size = (390, 320) if i % 3 else (320, 389 + i % 7)
            (folder / path).write_bytes(jpeg(x_ray(i, *size)))
            values = ["", "0.0", "1.0", "-1.0"] if name == "train" else None
            labels = rng.choice(values or ["0.0", "1.0"], 14)
            rows.append(
                [f"CheXpert-v1.0-small/{path}", "Female", 68, "Frontal", "AP"]
                + list(labels)
            )
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([CHEXPERT_COLUMNS, *rows])
    return folder


def write_domainnet(root, domain, train=12, test=6):
    """Writes what the archives of a DomainNet domain unpack to.

    Returns:
        Dict from "images", "train" and "test" to paths, and "labels" to a dict
        from "train" and "test" to lists of ints.
    """
    names = {0: "aircraft_carrier", 1: "airplane", 344: "zigzag"}
    made = {"images": root / "images", "labels": {}}
    for split, count in (("train", train), ("test", test)):
        lines, labels = [], [sorted(names)[i % 3] for i in range(count)]
        for i, label in enumerate(labels):
            path = f"{domain}/{names[label]}/{domain}_{split}_{i:06d}.jpg"
            (made["images"] / path).parent.mkdir(parents=True, exist_ok=True)
            image = photograph(i, 40 + 5 * i, 90 - 3 * i)
            (made["images"] / path).write_bytes(jpeg(image))
            lines.append(f"{path} {label}\n")
        made[split] = root / f"{domain}_{split}.txt"
        made[split].write_text("".join(lines))
        made["labels"][split] = labels
    return made


def write_imagenet(data_dir, synsets, train=6, validation=4):
    """Writes ImageNet's two archives where TFDS looks for them.

    Args:
        data_dir: `pathlib.Path`, TFDS' data_dir.
        synsets: Names of the classes there are training images of.
        train: Number of training images of each class.
        validation: Number of validation images.
    """
    manual = data_dir / "downloads" / "manual"
    manual.mkdir(parents=True)

    def add(archive, name, content):
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))

    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as outer:
        for k, synset in enumerate(synsets):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for i in range(train):
                    image = photograph(10 * k + i, 60 + i, 80)
                    add(archive, f"{synset}_{i}.JPEG", jpeg(image))
            add(outer, f"{synset}.tar", inner.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        for i in range(validation):
            name = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
            add(archive, name, jpeg(photograph(500 + i, 70, 50 + 9 * i)))
