"""How much of the last error can a decoder mend?

TEncDM (arXiv 2402.19097, Table 2) turns encodings into words with a small transformer, trained on slightly noised
encodings.  MAUVE there: .71 without the noise, .76 with it (Wikipedia: .53 and .87), against .74 for an MLP with it:
noise matters more than depth, because diffusion ends near the encodings and not on them.

A decoder is trained once for all seeds, and all arms of a seed decode what one and the same checkpoint samples.

    python studies/ablation_decoder.py --dry-run          what would run, and what is already there
    python studies/ablation_decoder.py                    here where there is no GPU, else at paper size
"""

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.tencdm import tencdm, tencdm_laptop

CLEAN = {"system.decoder.noise_from": 0.0, "system.decoder.noise_up_to": 0.0}
SHALLOW = {"system.decoder.layers": 1}

study = Study(
    name="ablation_decoder",
    question="How much of the last error can a decoder mend?",
    expectation="A decoder trained on noised encodings beats one trained on clean ones; depth matters less.",
    scales={"laptop": Scale(tencdm_laptop), "paper": Scale(tencdm, Resources(gpus=1))},
    arms={
        "noised": Arm(),                                    # the recipe's: up to time .15, on the laptop .3
        "clean": Arm(CLEAN),
        "noised for longer": Arm(lambda trial: {"system.decoder.noise_up_to": 2 * trial.system.decoder.noise_up_to}),
        "shallow noised": Arm(SHALLOW),
        "shallow clean": Arm(SHALLOW | CLEAN),
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
