"""Write texts with a trained model, on the command line.

    python -m trainables.generate --model results/stages/Trained-3f2a... -n 100
    python -m trainables.generate --model results/ablation_encoder/best -n 100 --seed 7 --steps 50
    python -m trainables.generate --model models:/palimpsest-ablation_encoder@best -n 100 --out texts.jsonl
    python -m trainables.generate --model FOLDER --source questions.txt -n 200         a model that reads sources
    python -m trainables.generate --model FOLDER --prompt "tom lost _ _ dog ."         words that are given; each _ is a
                                                   token to be written, and so is what follows (score LM, DiffusionBERT)

--model is a folder: a released generator, or the Trained-... or Sampled-... folder of a store.  Where it is a URI, the
part before the colon says whom to ask: whatever is installed under the entry point `palimpsest.models` of that name
fetches it.  Nothing here knows a registry.

Exit codes: 0 all written, 2 bad input, 130 interrupted.
"""

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import torch
import typer

from trainables.config import ConfigError
from trainables.generator import Generator
from trainables.text.files import parse_file
from trainables.text.rows import Row

FETCHERS = "palimpsest.models"          # entry points: scheme -> (uri, an empty folder) -> the generator's folder
Fetch = Callable[[str, Path], Path]


def command(
    model: Annotated[str, typer.Option(help="A folder, or a URI such as models:/NAME@best.")],
    count: Annotated[int, typer.Option("-n", help="How many texts.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Of the noise; without it the cell's, for the cell's texts.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler; without it, the cell's.")] = None,
    stepper: Annotated[str | None, typer.Option(help="How it steps: DpmPlusPlus2M, 'Posterior(eta=0.0)', ...")] = None,
    assignments: Annotated[list[str] | None, typer.Option(
        "--set", help="sampling.FIELD=value; again for more.")] = None,
    source: Annotated[str | None, typer.Option(
        help="A file to write from, if the model reads sources: x.txt, x.jsonl:field, x.csv:column.")] = None,
    label: Annotated[str | None, typer.Option("--class", help="Of the texts, if the model knows classes.")] = None,
    prompt: Annotated[str | None, typer.Option(
        help="Words to begin with, _ for a token to be written, if the model diffuses words.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda; without it, a GPU where there is one.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write JSON lines here, whole or not at all.")] = None,
) -> None:
    """Write texts with a trained model."""
    changes = [*([f"sampling.steps={steps}"] if steps is not None else []),
               *([f"sampling.stepper={stepper}"] if stepper is not None else []), *(assignments or ())]
    try:
        if out is not None and not out.absolute().parent.is_dir():
            raise ConfigError("--out", f"there is no folder {out.absolute().parent}")
        if out is not None and out.is_dir():
            raise ConfigError("--out", f"{out} is a folder; name a file")
        sources = [] if source is None else read_sources(source)
        with found(model) as folder:
            generator = Generator.load(folder, settled(device), changes)
            generator.check(count, sources, label)
            if prompt is not None:
                generator.check_prompt(prompt)
            rows = generator.write(count, seed, sources, label, prompt or "")
            if out is None:
                for row in rows:
                    typer.echo(row["text"])
            else:
                save(out, rows)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextlib.contextmanager
def found(model: str) -> Iterator[Path]:
    """The model's folder, fetched for as long as it is needed where it is a URI.   ConfigError"""
    scheme, colon, _ = model.partition(":")
    if not colon or Path(model).exists() or not scheme.isalpha():
        yield Path(model)
        return
    known = {point.name: point for point in entry_points(group=FETCHERS)}
    if scheme not in known:
        raise ConfigError("--model", f"nobody here fetches {scheme}: URIs (installed: {', '.join(known) or 'nobody'}); "
                                     "name a folder")
    fetch: Fetch = known[scheme].load()
    with tempfile.TemporaryDirectory() as into:
        yield fetch(model, Path(into))


def settled(device: str) -> str:
    """The device that was asked for.   ConfigError: there is none"""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("--device", f"{device!r} cannot be used: {next(iter(str(error).splitlines()), '')}") from None
    return str(chosen)


def read_sources(text: str) -> list[str]:
    """The sources of a file, in order.   ConfigError"""
    return [row["text"] for row in parse_file(text, fewest=1)[0]]


def save(out: Path, rows: Iterator[Row]) -> None:
    """One JSON object a line, written beside its place and renamed."""
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line; sys.argv where None."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    app(args=arguments, prog_name="python -m trainables.generate")


if __name__ == "__main__":
    main()
