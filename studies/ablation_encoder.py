"""Which encodings are worth diffusing?

TEncDM (arXiv 2402.19097, Table 1) diffuses the hidden states of a language model instead of its word embeddings.  The
paper finds that contextual encodings beat plain embeddings, and BERT's the others.

    python studies/ablation_encoder.py --dry-run          what would run, and what is already there
    python studies/ablation_encoder.py                    here where there is no GPU, else at paper size
    python studies/ablation_encoder.py --data texts.csv:column --test-data other.csv:column
    python studies/ablation_encoder.py --report           the table again, from what is recorded
"""

from collections.abc import Callable
from typing import Any

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.tencdm import tencdm, tencdm_laptop
from trainables.text.encoders import T5, Bart, Bert, Embeddings, Roberta, contextual


def small(family: Callable) -> Callable[[Any], dict]:
    """The laptop's home-grown encoder, of another family: same size, same training."""
    return lambda trial: {"system.encoder": family(weights=contextual(trial.system.encoder).weights)}


study = Study(
    name="ablation_encoder",
    question="Which encodings are worth diffusing?",
    expectation="Contextual encodings beat plain embeddings, and BERT is hard to beat.",
    scales={"laptop": Scale(tencdm_laptop), "paper": Scale(tencdm, Resources(gpus=1))},
    arms={
        "BERT": Arm(laptop=small(Bert), paper={"system.encoder": Bert()}),
        "RoBERTa": Arm(laptop=small(Roberta), paper={"system.encoder": Roberta()}),
        "T5": Arm(laptop=small(T5), paper={"system.encoder": T5()}),
        "BART": Arm(laptop=small(Bart), paper={"system.encoder": Bart()}),
        "embeddings": Arm(lambda trial: {"system.encoder": Embeddings(of=trial.system.encoder)}),
    },
    report=(
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"),
        Maximise("test/mauve"), Minimise("test/judge_nll"), Minimise("test/fd"), Minimise("test/perplexity"),
        Maximise("test/diversity"), Watch("test/memorisation"), Minimise("test/departure"),
        Maximise("valid/context_gain"),
    ),
    seeds=3,
)

if __name__ == "__main__":
    main(study)
