"""Which way back, in how many looks?

TEncDM (arXiv 2402.19097) samples by 50 Euler steps of the reverse SDE and finds more of them worse: with
self-conditioning, guesses grow from step to step.  But 50 coarse Euler steps are biased even with a perfect denoiser.
Here the way back is separated from the model: all arms of a seed sample from one and the same checkpoint, so this study
trains a network per seed and, where another study has trained it, none.

Arms are compared at equal cost, counted in looks (network calls); Heun looks twice a step.

    python studies/ablation_sampler.py --dry-run          what would run, and what is already there
    python studies/ablation_sampler.py                    here where there is no GPU, else at paper size
"""

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.diffusion.steppers import DpmPlusPlus2M, EulerMaruyama, Heun, LinearGrid, LogSnrGrid, Posterior
from trainables.tencdm import tencdm, tencdm_laptop

EVEN_IN_TIME = LinearGrid(end=0.01)                    # the paper's
EVEN_IN_NOISE = LogSnrGrid(low=-8.0, high=4.0)         # e^4 is where the paper's grid ends

WAYS = {
    "Euler": (EulerMaruyama(), EVEN_IN_TIME, 1),
    "DDPM": (Posterior(eta=1.0), EVEN_IN_NOISE, 1),
    "DDIM": (Posterior(eta=0.0), EVEN_IN_NOISE, 1),
    "Heun": (Heun(), EVEN_IN_NOISE, 2),
    "DPM++": (DpmPlusPlus2M(), EVEN_IN_NOISE, 1),
}

study = Study(
    name="ablation_sampler",
    question="Which way back, in how many looks?",
    expectation="Exact steps, even in noise level, need a fifth of Euler's looks; many more looks do not help.",
    scales={"laptop": Scale(tencdm_laptop), "paper": Scale(tencdm, Resources(gpus=1))},
    arms={
        f"{way} {looks}": Arm({"sampling.stepper": stepper, "sampling.grid": grid, "sampling.steps": looks // each})
        for looks in (50, 10, 20, 200) for way, (stepper, grid, each) in WAYS.items()
    },
    report=(
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"),
        Maximise("test/mauve"), Minimise("test/perplexity"), Minimise("test/judge_nll"),
        Maximise("test/diversity"), Watch("test/memorisation"),
    ),
    seeds=3,
)

if __name__ == "__main__":
    main(study)
