"""What MLflow runs when it loads a registered generator: a model from code, so nothing is unpickled.

    mlflow.pyfunc.load_model("models:/palimpsest-ablation_encoder@best").predict({"n": 3, "seed": 0})   -> 3 texts

The registered model has this file, the released folder (trainables/release.py) and a copy of trainables/.  A frame of
several rows asks several times: n texts for each, from its source and of its class where the system reads them.
"""

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Writer(PythonModel):
    """The generator, as MLflow asks for it."""

    def load_context(self, context: Any) -> None:
        import torch

        from trainables.generator import Generator

        self.generator = Generator.load(context.artifacts["generator"], "cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, context: Any, model_input, params: Any = None):
        """Texts.   model_input: a row, or a frame of rows, of n, seed (without it: the cell's), source, class"""
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else [model_input]
        return [written["text"] for row in rows for written in self._write(row)]

    def _write(self, row: dict[str, Any]):
        said = {name: value for name, value in row.items() if value is not None and value == value}     # NaN: not said
        return self.generator.write(
            int(said.get("n", 1)), None if "seed" not in said else int(said["seed"]),
            [said["source"]] if "source" in said else [], said.get("class"))


set_model(Writer())
