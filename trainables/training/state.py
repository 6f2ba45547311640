"""What training needs in order to go on, and what it leaves when it is done: tensors and JSON, never pickle.

    out/state/training.safetensors    while unfinished: weights, buffers, optimizer, averages; step and meter as JSON
    out/model.safetensors             the end: averaged weights and buffers, by their names in the model

Both are written beside their place and renamed, so a reader sees all of a file or none of it.  What belongs to a
frozen module (a language model that is only read) is in neither: whoever builds the model builds that part again.
Noise and data order are functions of (seed, step), so no random state is kept.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn

from trainables.training.average import Average

MODEL = "model.safetensors"
STATE = Path("state") / "training.safetensors"


# ---------------------------------------------------------------- what of a model is kept


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; a tied one under its first name only."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen(model: nn.Module) -> dict[str, nn.Module]:
    """The largest submodules that have parameters, none of which is trained."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        flags = [parameter.requires_grad for parameter in module.parameters()]
        if name and not inside and flags and not any(flags):
            found[name] = module
    return found


def constants(model: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers outside frozen modules."""
    persistent, outside = model.state_dict(keep_vars=True).keys(), tuple(f"{name}." for name in frozen(model))
    return {name: buffer for name, buffer in model.named_buffers()
            if name in persistent and not name.startswith(outside)}


# ---------------------------------------------------------------- the end: weights


def save_weights(model: nn.Module, folder: Path, about: Mapping[str, str]) -> None:
    """Write what `load_weights` reads: the trained parameters as they now are, and buffers."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{MODEL}.new"
    save_file(_plain({**trainable(model), **constants(model)}), beside, metadata=dict(about))
    _settle(beside, folder / MODEL)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put the weights that training left in `folder` into `model`.   ValueError: no checkpoint, or another model's"""
    path = Path(folder) / MODEL
    if not path.is_file():
        raise ValueError(f"{folder} is no checkpoint: it has no {MODEL}")
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    _pour(stored, own, required=trainable(model), where=str(path))


def weights_about(folder: Path) -> dict[str, str]:
    """What `save_weights` was told; empty when there are no weights."""
    if not (folder / MODEL).is_file():
        return {}
    with safe_open(folder / MODEL, framework="pt") as file:
        return file.metadata() or {}


# ---------------------------------------------------------------- while unfinished


@dataclass
class State:
    """Everything that a step changes, but its number and what is measured on the way."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average

    def save(self, out: Path, notes: Mapping[str, Any]) -> None:
        """Write the tensors and the `notes` (plain JSON) as one file."""
        beside = out / STATE.with_suffix(".new")
        beside.parent.mkdir(parents=True, exist_ok=True)
        save_file(_plain(self._tensors()), beside, metadata={"notes": json.dumps(notes)})
        _settle(beside, out / STATE)

    def restore(self, data: bytes, where: str) -> None:
        """Go back to what the file `data` holds."""
        stored = load(data)
        # An optimizer makes its tensors at its first step; here they are made from the file.
        for name, parameter in trainable(self.model).items():
            prefix = f"optimizer/{name}/"
            slots = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            if slots:
                self.optimizer.state[parameter] = {slot: value.to(parameter.device) for slot, value in slots.items()}
        own = self._tensors()
        _pour(stored, own, required=own, where=where)

    def _tensors(self) -> dict[str, Tensor]:
        """By name, and the tensors themselves, not copies."""
        parameters = trainable(self.model)
        tensors = {f"model/{name}": value for name, value in {**parameters, **constants(self.model)}.items()}
        tensors |= {f"average/{name}": mean for name, mean in zip(parameters, self.average.means, strict=False)}
        for name, parameter in parameters.items():
            tensors |= {f"optimizer/{name}/{slot}": value for slot, value in self.optimizer.state[parameter].items()}
        return tensors


def read_state(out: Path) -> bytes:
    """The file of an unfinished training, or nothing."""
    return (out / STATE).read_bytes() if (out / STATE).is_file() else b""


def read_notes(data: bytes) -> dict[str, Any]:
    """The notes in a state file; a safetensors file begins with its header's length and the header, in JSON."""
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["notes"])


def drop_state(out: Path) -> None:
    """There is nothing left to go on with."""
    shutil.rmtree(out / STATE.parent, ignore_errors=True)


# ---------------------------------------------------------------- tensors by name


@torch.no_grad()
def _pour(stored: Mapping[str, Tensor], own: Mapping[str, Tensor], required: Mapping[str, Tensor], where: str) -> None:
    """Copy what is stored into the tensors of the same name."""
    strange, missing = sorted(stored.keys() - own.keys()), sorted(required.keys() - stored.keys())
    if strange or missing:
        raise ValueError(f"{where} belongs to another model: "
                         f"it has {_some(strange)} too many and lacks {_some(missing)}")
    for name, value in stored.items():
        if own[name].shape != value.shape:
            raise ValueError(f"{where} belongs to another model: "
                             f"{name} is {tuple(value.shape)}, not {tuple(own[name].shape)}")
        own[name].copy_(value)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _settle(beside: Path, place: Path) -> None:
    """The finished file `beside` becomes `place`, on the disk and not only in its cache."""
    with open(beside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, place)
