"""Five systems, one corpus, one training budget: which writes best?

    TEncDM           Gaussian diffusion of a frozen encoder's states                     trainables/tencdm.py
    LD4LG            ... of states that a perceiver has compressed                       trainables/ld4lg.py
    annealed LD4LG   ... of raw states, mild noise first                                 trainables/ld4lg_annealed.py
    DiffusionBERT    words that disappear behind a mask                                  trainables/diffusionbert.py
    score LM         Gaussian diffusion of word embeddings that are learned with it      trainables/scorelm.py

Each arm is a system with the recipe that suits it, trained for as many texts as the others: 2,000 steps of about 64
here, and the 102.4 million of TEncDM's paper at paper size.  What a text costs differs, and the column of hours says
how much; language models, encoders, autoencoders and decoders are stages, paid once for all seeds.

    python studies/compare_systems.py --dry-run           what would run, and what is already there
    python studies/compare_systems.py                     here where there is no GPU, else at paper size
"""

from collections.abc import Callable

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.diffusionbert import diffusionbert, diffusionbert_laptop
from trainables.ld4lg import ld4lg, ld4lg_laptop
from trainables.ld4lg_annealed import ld4lg_annealed, ld4lg_annealed_laptop
from trainables.scorelm import scorelm, scorelm_laptop
from trainables.tencdm import tencdm, tencdm_laptop
from trainables.trial import Trial

STEPS, TEXTS = 2_000, 102_400_000


def system(laptop: Callable[..., Trial], paper: Callable[..., Trial]) -> Arm:
    """All of another recipe but its data and its evaluation; at paper size, as many texts as TEncDM sees."""
    def all_of(trial: Trial) -> dict:
        return {"system": trial.system, "training": trial.training, "sampling": trial.sampling}

    def at_paper_size(base: Trial) -> dict:
        trial = paper(base.data)
        return all_of(trial) | {"training.steps": TEXTS // trial.training.batch}

    return Arm(laptop=lambda base: all_of(laptop(base.data)) | {"training.steps": STEPS}, paper=at_paper_size)


study = Study(
    name="compare_systems",
    question="Which system writes best after the same training?",
    expectation="Open: the papers train on different data, for different times, and measure differently.",
    scales={"laptop": Scale(tencdm_laptop), "paper": Scale(tencdm, Resources(gpus=1))},
    arms={
        "TEncDM": Arm(laptop={"training.steps": STEPS}),
        "LD4LG": system(ld4lg_laptop, ld4lg),
        "annealed LD4LG": system(ld4lg_annealed_laptop, ld4lg_annealed),
        "DiffusionBERT": system(diffusionbert_laptop, diffusionbert),
        "score LM": system(scorelm_laptop, scorelm),
    },
    report=(
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"),
        Maximise("test/mauve"), Minimise("test/judge_nll"), Minimise("test/fd"), Minimise("test/perplexity"),
        Maximise("test/diversity"), Watch("test/memorisation"), Minimise("test/departure"),
    ),
    seeds=3,
)

if __name__ == "__main__":
    main(study)
