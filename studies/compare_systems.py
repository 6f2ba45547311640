"""Five systems, one corpus, one training budget: which writes best?

    TEncDM           Gaussian diffusion of a frozen encoder's states                     trainables/tencdm.py
    LD4LG            ... of states that a perceiver has compressed                       trainables/ld4lg.py
    annealed LD4LG   ... of raw states, mild noise first                                 trainables/ld4lg_annealed.py
    DiffusionBERT    words that disappear behind a mask                                  trainables/diffusionbert.py
    score LM         Gaussian diffusion of word embeddings that are learned with it      trainables/scorelm.py

Each arm has the recipe that suits it and sees as many texts as the others: 2,000 steps of 64 here (the score LM's rows
hold about as many), the 102.4 million of TEncDM's paper at paper size.  There a row of the score LM holds one text, and
DiffusionBERT minds case, as the texts do that it is judged by, and learns by a bound (see ablation_spindle.py).

    python studies/compare_systems.py                     here where there is no GPU, else at paper size (--dry-run)
"""

from collections.abc import Callable

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.diffusion.objectives import Mdlm
from trainables.diffusionbert import diffusionbert, diffusionbert_laptop
from trainables.ld4lg import ld4lg, ld4lg_laptop
from trainables.ld4lg_annealed import ld4lg_annealed, ld4lg_annealed_laptop
from trainables.scorelm import ScoreLm, scorelm, scorelm_laptop
from trainables.tencdm import tencdm, tencdm_laptop
from trainables.text.families import Bert
from trainables.text.packing import Padded
from trainables.trial import Trial

STEPS, BATCH, TEXTS = 2_000, 64, 102_400_000


def system(laptop: Callable[..., Trial], paper: Callable[..., Trial], **differs: object) -> Arm:
    """Another recipe's method, with as much training; `differs`: fields of its system, at paper size."""
    def here(own: Trial) -> dict:
        return own.method() | {"training.steps": STEPS} | (
            {} if isinstance(own.system, ScoreLm) else {"training.batch": BATCH})

    def there(own: Trial) -> dict:
        return own.method() | {"training.steps": TEXTS // own.training.batch} | {
            f"system.{name}": value for name, value in differs.items()}

    return Arm(laptop=lambda base: here(laptop(base.data)), paper=lambda base: there(paper(base.data)))


study = Study(
    name="compare_systems", question="Which system writes best after the same training?",
    expectation="Open: the papers train on different data, for different times, and measure differently.",
    scales={"laptop": Scale(tencdm_laptop), "paper": Scale(tencdm, Resources(gpus=1))},
    arms={
        "TEncDM": Arm(laptop={"training.steps": STEPS, "training.batch": BATCH}),
        "LD4LG": system(ld4lg_laptop, ld4lg), "annealed LD4LG": system(ld4lg_annealed_laptop, ld4lg_annealed),
        "DiffusionBERT": system(diffusionbert_laptop, diffusionbert, lm=Bert(), objective=Mdlm()),
        "score LM": system(scorelm_laptop, scorelm, packing=Padded()),
    },
    report=(
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"), Maximise("test/mauve"), Minimise("test/judge_nll"), Minimise("test/fd"),
        Minimise("test/perplexity"), Maximise("test/diversity"), Watch("test/memorisation"),
        Minimise("test/departure")), seeds=3)

if __name__ == "__main__":
    main(study)
