"""Does the sign of a momentum train a diffusion as well as Adam?

Lion (arXiv 2302.06675) keeps one momentum and steps by its sign: half of Adam's memory.  Its authors take a third to a
tenth of Adam's learning rate, and a weight decay as much larger, so that their product stays.  The annealing thesis
takes Adam's own rate, and betas of (.9, .999).  An optimizer is only as good as its rate, so each comes with three, and
the thesis' choice is an arm of its own: compare the best of one with the best of the other.

    python studies/ablation_optimizer.py --dry-run        what would run, and what is already there
    python studies/ablation_optimizer.py                  here where there is no GPU, else at paper size
"""

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.tencdm import tencdm, tencdm_laptop
from trainables.training.optimizers import Lion
from trainables.trial import Trial


def adamw(times: float) -> Arm:
    """The recipe's AdamW at so many times its rate."""
    return Arm(lambda trial: {"training.optimizer.lr": times * trial.training.optimizer.lr})


def lion(times: float) -> Arm:
    """Lion at so many times AdamW's rate; a step decays weights as much as AdamW's does."""
    def changes(trial: Trial) -> dict:
        adam = trial.training.optimizer
        return {"training.optimizer": Lion(
            lr=times * adam.lr, weight_decay=adam.weight_decay / times, decays=adam.decays)}

    return Arm(changes)


def thesis(trial: Trial) -> dict:
    adam = trial.training.optimizer
    return {"training.optimizer": Lion(
        lr=adam.lr, betas=(0.9, 0.999), weight_decay=adam.weight_decay, decays=adam.decays)}


study = Study(
    name="ablation_optimizer", question="Does the sign of a momentum train a diffusion as well as Adam?",
    expectation="Each at its best rate, Lion about equals AdamW; at AdamW's own rate it is far too fast.",
    scales={"laptop": Scale(tencdm_laptop), "paper": Scale(tencdm, Resources(gpus=1))},
    arms={
        "AdamW": Arm(),
        **{f"AdamW x {times}": adamw(times) for times in (0.3, 3.0)},
        **{f"Lion x {times}": lion(times) for times in (0.3, 0.1, 0.03)},
        "Lion as in the thesis": Arm(thesis),
    },
    report=(
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"), Maximise("test/mauve"), Minimise("test/perplexity"),
        Minimise("test/judge_nll"), Maximise("test/diversity"), Watch("test/memorisation"),
        Maximise("valid/context_gain"), Minimise("valid/loss"),
    ),
    seeds=3,
)

if __name__ == "__main__":
    main(study)
