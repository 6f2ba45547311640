"""Asked for a text of a class, which system writes one of it, and does guidance help?

    LD4LG            is told the class by a vector in each layer, and diffuses compressed states   trainables/ld4lg.py
    annealed LD4LG   reads it by cross-attention, and diffuses raw ones        trainables/ld4lg_annealed.py
    ... guided       pushes each guess away from the one without a class, as far again as guidance 1 says

Each arm is its recipe with ld4lg.CLASS_CONDITIONAL, and sees as many texts as the others: 2,000 steps of 64 here, the
32 million of LD4LG's paper at paper size.  A guided arm samples otherwise and shares its plain one's training.

    python studies/compare_classes.py --dry-run           what would run, and what is already there
    python studies/compare_classes.py                     stories of six classes where there is no GPU, else AG News
    python studies/compare_classes.py --data texts.csv:text::class         your texts; wrong_class is for stories only
    python studies/compare_classes.py --set training.steps=500             as for every study
"""

from collections.abc import Callable

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.config import override
from trainables.ld4lg import CLASS_CONDITIONAL, ld4lg, ld4lg_laptop
from trainables.ld4lg_annealed import ld4lg_annealed, ld4lg_annealed_laptop
from trainables.text.corpora import Data, HubTexts, Stories
from trainables.trial import Trial

STEPS, BATCH, TEXTS = 2_000, 64, 32_000_000
NEWS = HubTexts(name="fancyzhx/ag_news", class_column="label")                 # four classes of 30,000 texts


def told(recipe: Callable[..., Trial], usual: Data) -> Callable[..., Trial]:
    """The recipe that is told classes, as a function of the data, with the budget of its size."""
    def asked(data: Data = usual) -> Trial:
        own = override(recipe(data), CLASS_CONDITIONAL)
        return override(own, {"training.steps": TEXTS // own.training.batch} if usual is NEWS else
                        {"training.steps": STEPS, "training.batch": BATCH})
    return asked


def annealed(**sampling: float) -> Arm:
    """`sampling`: fields of it that differ from the recipe's."""
    changes = {f"sampling.{name}": value for name, value in sampling.items()}
    return Arm(laptop=lambda base: override(told(ld4lg_annealed_laptop, Stories())(base.data), changes).method(),
               paper=lambda base: override(told(ld4lg_annealed, NEWS)(base.data), changes).method())


study = Study(
    name="compare_classes", question="Asked for a text of a class, which system writes one of it?",
    expectation="Most texts are of their class in every arm, and guidance makes that more, at the price of variety.",
    scales={"laptop": Scale(told(ld4lg_laptop, Stories())), "paper": Scale(told(ld4lg, NEWS), Resources(gpus=1))},
    arms={"LD4LG": Arm(), "LD4LG guided": Arm({"sampling.guidance": 1.0}),
          "annealed LD4LG": annealed(), "annealed LD4LG guided": annealed(guidance=1.0)},
    report=(
        Minimise("test/wrong_class", margin=0.02), Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll"),
        Minimise("test/total_variation"), Maximise("test/mauve"), Minimise("test/fd"), Minimise("test/judge_nll"),
        Minimise("test/perplexity"), Maximise("test/diversity"), Watch("test/memorisation"),
        Minimise("test/departure")),
    seeds=3)

if __name__ == "__main__":
    main(study)
