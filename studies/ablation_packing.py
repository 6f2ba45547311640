"""Should several documents share a row, and should every token have a noise level of its own?

The score LM's code packs documents into rows to waste fewer slots on pads, and began with a noise level for each token
("multi-level"), of which later versions kept less and less and in the end, by an oversight, nothing.  Here rows keep
their documents apart exactly, so packing should change the speed alone; a level per token teaches prompts anywhere,
and its levels are not those of a sampler, which noises all tokens alike.

All arms have about the same slots a step: without packing, more rows that are shorter.  valid/filled is the share of
slots that hold a token, so what a step has learned from is steps x slots x that.

    python studies/ablation_packing.py --dry-run          what would run, and what is already there
    python studies/ablation_packing.py                    here where there is no GPU, else at paper size
    python studies/ablation_packing.py --data texts.csv:column --test-data other.csv:column
"""

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.scorelm import ScoreLm, scorelm, scorelm_laptop
from trainables.text.packing import Padded
from trainables.trial import Trial


def unpacked(trial: Trial) -> dict:
    """One document a row; as many rows as have the slots of the packed batch."""
    system = trial.system
    assert isinstance(system, ScoreLm)
    slots = trial.training.batch * system.packing.slots(system.longest)
    return {"system.packing": Padded(), "training.batch": slots // system.longest}


PER_TOKEN = {"system.multilevel": 1.0}

study = Study(
    name="ablation_packing",
    question="Should documents share a row, and should tokens have noise levels of their own?",
    expectation="Packing learns from more tokens a step and loses nothing; a level per token costs samples.",
    scales={"laptop": Scale(scorelm_laptop), "paper": Scale(scorelm, Resources(gpus=1))},
    arms={
        "packed": Arm(),
        "padded": Arm(unpacked),
        "packed per token": Arm(PER_TOKEN),
        "padded per token": Arm(lambda trial: unpacked(trial) | PER_TOKEN),
        "packed half per token": Arm({"system.multilevel": 0.5}),
    },
    report=(
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"),
        Maximise("test/mauve"), Minimise("test/judge_nll"), Minimise("test/fd"), Minimise("test/perplexity"),
        Maximise("test/diversity"), Watch("test/memorisation"), Minimise("test/departure"),
        Maximise("valid/filled", margin=0.02), Minimise("valid/nats_at_50"),
    ),
    seeds=3,
)

if __name__ == "__main__":
    main(study)
