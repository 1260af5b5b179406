"""Writes the state dict in a PyTorch file as safetensors.

Run as a program, so that PyTorch and TensorFlow share no process:

    python torch_conversion.py FILE.pth WEIGHTS.safetensors

What cannot be converted ends in a line of JSON, {"error": "..."}: the rest of a
sentence that begins with the file.
"""

import json
import pickle
import sys


def main(path, converted):
    """Converts one file."""
    # Here, for whoever imports this module may have TensorFlow, or no PyTorch.
    import safetensors.torch
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            return _fail(
                "holds Python code or a whole model, which loading it would "
                "run, and is not loaded. Write the weights alone where you "
                "trust it: torch.save(model.state_dict(), PATH)."
            )
        return _fail(_damaged(error))
    except Exception as error:
        return _fail(_damaged(error))
    found = _state_dicts(content)
    if len(found) > 1:
        return _fail(
            f"holds several state dicts: {', '.join(map(str, found))}. Write "
            "the one that is meant alone, with torch.save."
        )
    if not found:
        return _fail("is a file of PyTorch's without a state dict.")
    (state,) = found.values()
    arrays = {
        name: value.detach().to_dense().contiguous().clone()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    safetensors.torch.save_file(
        arrays, converted, {"order": json.dumps(list(arrays))}
    )
    return None


def _state_dicts(content):
    """Returns {key: state dict}; of the whole content, {"": content}."""
    import torch

    if not isinstance(content, dict):
        return {}
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return {"": content}
    return {
        key: value
        for key, value in content.items()
        if isinstance(value, dict)
        and value
        and all(isinstance(item, torch.Tensor) for item in value.values())
    }


def _damaged(error):
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        "cannot be read as a file of PyTorch's: it is damaged, or was cut "
        f"short as it was fetched. PyTorch said: {reason[:200]}"
    )


def _fail(error):
    print(json.dumps({"error": error}))


if __name__ == "__main__":
    main(*sys.argv[1:])
