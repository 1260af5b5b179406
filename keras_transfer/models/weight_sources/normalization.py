"""How images were normalized for the network of a source of weights."""

import json

# Of a file, the keys that lead to the values; of ours beside the source, too.
_OURS = "preprocessing.json", (), ("mean", "std")
_FILES = (
    ("config.json", ("pretrained_cfg",), ("mean", "std")),
    ("preprocessor_config.json", (), ("image_mean", "image_std")),
    _OURS,
)


def normalization(path):
    """Returns what is noted of a source's images: by timm, Hugging Face or us.

    Args:
        path: `pathlib.Path` of the source. What `export` writes has its note in
            the directory above.

    Returns:
        mean and standard deviation, tuples of one float a channel in units of
        pixel / 255; None and None if nothing is noted.
    """
    places = [(path, *file) for file in _FILES] + [(path.parent, *_OURS)]
    for directory, name, keys, names in places:
        found = read_json(directory / name)
        for key in keys:
            found = found.get(key)
        if isinstance(found, dict):
            values = [found.get(n) for n in names]
            if all(isinstance(v, list) and v for v in values):
                return tuple(tuple(map(float, value)) for value in values)
    return None, None


def read_json(path):
    """Returns the dict in a file, {} if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
