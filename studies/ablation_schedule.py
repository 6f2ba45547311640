"""How fast should the noise come?

TEncDM (arXiv 2402.19097, Table 3) destroys text with tan-d, where larger d is heavier noise, and finds that published
schedules are too mild for encodings: a denoiser can read words off a lightly noised text without their context.
MAUVE there: cosine .10, sqrt .36, tan-7 .73, tan-9 .76, tan-11 .73.  Its code calls the VP-SDE "cosine": both are arms.

Tiny encodings have fewer dimensions to hide a word in, so the laptop asks about smaller d.  There, what is said in a
schedule's time but means a level of noise (the mildest noise trained on, and the decoder's) is kept at that level.

    python studies/ablation_schedule.py               here where there is no GPU, else at paper size (--dry-run: plan)
"""

import torch

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.diffusion.schedules import Cosine, Schedule, Sqrt, Tangent, VpLinear
from trainables.tencdm import TEncDM, tencdm, tencdm_laptop
from trainables.trial import Trial


def swapped(schedule: Schedule) -> dict:                    # and nothing else, as the paper swaps it
    return {"system.process.schedule": schedule}


def levelled(schedule: Schedule):
    """The schedule, with times moved so that they stand for the noise that they stood for."""
    def changes(trial: Trial) -> dict:
        system = trial.system
        assert isinstance(system, TEncDM)
        times = torch.tensor([system.times.low, system.decoder.noise_up_to], dtype=torch.float64)
        low, decoder = schedule.time(system.process.schedule.log_snr(times)).tolist()
        return swapped(schedule) | {"system.times.low": round(low, 4), "system.decoder.noise_up_to": round(decoder, 4)}

    return changes


study = Study(
    name="ablation_schedule", question="How fast should the noise come?",
    expectation="tan-d beats cosine and sqrt, and near its best d matters little.",
    scales={"laptop": Scale(tencdm_laptop), "paper": Scale(tencdm, Resources(gpus=1))},
    arms={
        "tan-d": Arm(),                                     # the recipe's: 9, on the laptop 2
        "milder tan": Arm(laptop=levelled(Tangent(d=1.5)), paper=swapped(Tangent(d=7.0))),
        "heavier tan": Arm(laptop=levelled(Tangent(d=4.0)), paper=swapped(Tangent(d=11.0))),
        "heaviest tan": Arm(laptop=levelled(Tangent(d=9.0)), paper=swapped(Tangent(d=15.0))),
        "cosine": Arm(laptop=levelled(Cosine()), paper=swapped(Cosine())),
        "VP": Arm(laptop=levelled(VpLinear()), paper=swapped(VpLinear())),
        "sqrt": Arm(laptop=levelled(Sqrt()), paper=swapped(Sqrt())),
    },
    report=(
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"), Maximise("test/mauve"), Minimise("test/perplexity"),
        Minimise("test/judge_nll"), Maximise("test/diversity"), Watch("test/memorisation"), Watch("valid/context_gain"),
    ),
    seeds=3,
)

if __name__ == "__main__":
    main(study)
