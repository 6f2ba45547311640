"""Three systems, one corpus of sources and texts, one training budget: which says best what it is asked to say?

    TEncDM           reads the encoded source by cross-attention in each layer           trainables/tencdm.py
    LD4LG            the same, and walks from guess to guess of the latents' norm        trainables/ld4lg.py
    DiffusionBERT    stands behind the source, which is never hidden                     trainables/diffusionbert.py

Each arm is its recipe with its own SEQUENCE_TO_SEQUENCE, and sees as many pairs as the others: 2,000 steps of 64 here,
the 102.4 million of TEncDM's paper at paper size, there of Quora's equal questions.  One text is drawn for a source,
whatever a recipe would draw, so that systems are compared and not how often they are asked.

    python studies/compare_conditional.py --dry-run       what would run, and what is already there
    python studies/compare_conditional.py                 notes to stories where there is no GPU, else at paper size
    python studies/compare_conditional.py --data train.csv:text:source --test-data test.csv:text:source
    python studies/compare_conditional.py --set training.steps=500         BLEU by training, point by point
    python studies/compare_conditional.py --set sampling.candidates=5      the most agreed of five, in every arm
"""

from collections.abc import Callable, Mapping
from typing import Any

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables import diffusionbert, ld4lg, tencdm
from trainables.config import override
from trainables.evaluation.bleu import Bleu
from trainables.evaluation.rouge import Rouge
from trainables.text.corpora import Data, HubTexts, Stories
from trainables.trial import Trial

STEPS, BATCH, TEXTS = 2_000, 64, 102_400_000
QUESTIONS = HubTexts(name="sentence-transformers/quora-duplicates", subset="pair", columns=("positive",),
                     source_columns=("anchor",))                            # the 149,263 pairs that mean the same


def reading(recipe: Callable[..., Trial], changes: Mapping[str, Any], usual: Data) -> Callable[..., Trial]:
    """The recipe made to read sources, as a function of the data, with the budget of its size."""
    def asked(data: Data = usual) -> Trial:
        plain = recipe(data)
        own = override(plain, changes)
        budget = {"training.steps": TEXTS // own.training.batch} if usual is QUESTIONS else \
            {"training.steps": STEPS, "training.batch": BATCH}
        if isinstance(data, Stories) and "system.source_length" in changes:
            budget["system.source_length"] = 8                              # a note has three words
        return override(own, {**budget, "sampling.candidates": 1, "sampling.consensus": "bleu",
                              "evaluation.metrics": (Bleu(), Rouge(), *plain.evaluation.metrics)})
    return asked


def system(laptop: Callable[..., Trial], paper: Callable[..., Trial], changes: Mapping[str, Any],
           published: Mapping[str, Any]) -> Arm:
    """Another recipe's method.   `changes` here, `published` at paper size: how it is made to read sources."""
    return Arm(laptop=lambda base: reading(laptop, changes, Stories())(base.data).method(),
               paper=lambda base: reading(paper, published, QUESTIONS)(base.data).method())


study = Study(
    name="compare_conditional", question="Which system says best what it is asked to say?",
    expectation="DiffusionBERT, which sees the source's words beside its own, copies names best after little training.",
    scales={"laptop": Scale(reading(tencdm.tencdm_laptop, tencdm.SEQUENCE_TO_SEQUENCE, Stories())),
            "paper": Scale(reading(tencdm.tencdm, tencdm.SEQUENCE_TO_SEQUENCE, QUESTIONS), Resources(gpus=1))},
    arms={
        "TEncDM": Arm(),
        "LD4LG": system(ld4lg.ld4lg_laptop, ld4lg.ld4lg, ld4lg.SEQUENCE_TO_SEQUENCE, ld4lg.SEQUENCE_TO_SEQUENCE),
        "DiffusionBERT": system(diffusionbert.diffusionbert_laptop, diffusionbert.diffusionbert,
                                diffusionbert.SEQUENCE_TO_SEQUENCE, diffusionbert.SEQUENCE_TO_SEQUENCE_PAPER),
    },
    report=(
        Maximise("test/bleu", margin=0.02), Maximise("test/rouge2"), Maximise("test/rouge_l"),
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll"), Maximise("test/mauve"), Minimise("test/fd"),
        Minimise("test/judge_nll"), Minimise("test/perplexity"), Maximise("test/diversity"),
        Watch("test/memorisation"), Minimise("test/departure"),
    ),
    seeds=3)

if __name__ == "__main__":
    main(study)
