"""Does it help to learn from mild noise first, or only to learn from more of it?

The annealing thesis trains on a range of times that opens from a fifth to all of it in the first half of training:
linearly, by a power, by a cosine, by stairs.  Whatever its shape, such a range has two effects: an order, mild noise
first, and a total, more mild noise altogether (30 to 42 % of all draws fall into the first fifth of time).  The thesis
has no arm that would tell the two apart, so here each shape comes twice: "first" is the annealing; "more" draws from
the first step on what that annealing draws in all.  A total that helps shows between "more" and "uniform", an order
that helps between "first" and "more".  Their losses are over different times; what is comparable all the way, so early
as well, is valid/error_at_25, _50 and _75, the guess's error at a quarter, half and three quarters of time:

    python studies/ablation_annealing.py --dry-run        what would run, and what is already there
    python studies/ablation_annealing.py                  here where there is no GPU, else at paper size
    python studies/ablation_annealing.py --arms "linear first,linear more"        what the order does, seed by seed
"""

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.diffusion.ranges import CosineRange, FullRange, LinearRange, PolynomialRange, StepwiseRange
from trainables.diffusion.times import Exposure
from trainables.ld4lg_annealed import ld4lg_annealed, ld4lg_annealed_laptop

SHAPES = {
    "power 2": PolynomialRange(power=2.0),
    "linear": LinearRange(),
    "power 3": PolynomialRange(power=3.0),
    "cosine": CosineRange(),
    "stairs": StepwiseRange(),
}

study = Study(
    name="ablation_annealing",
    question="Does it help to learn from mild noise first, or only to learn from more of it?",
    expectation="Open: the thesis has no numbers to quote.  If order matters, each shape beats its own control.",
    scales={"laptop": Scale(ld4lg_annealed_laptop), "paper": Scale(ld4lg_annealed, Resources(gpus=1))},
    arms={
        "uniform": Arm({"system.times.range": FullRange()}),
        **{f"{shape} first": Arm({"system.times.range": range}) for shape, range in SHAPES.items()},
        **{f"{shape} more": Arm({"system.times.range": FullRange(), "system.times.law": Exposure(range=range)})
           for shape, range in SHAPES.items()},
    },
    report=(
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"),
        Maximise("test/mauve"), Minimise("test/perplexity"), Minimise("test/judge_nll"),
        Maximise("test/diversity"), Watch("test/memorisation"),
        Minimise("valid/error_at_25"), Minimise("valid/error_at_50"), Minimise("valid/error_at_75"),
    ),
    seeds=3,
)

if __name__ == "__main__":
    main(study)
