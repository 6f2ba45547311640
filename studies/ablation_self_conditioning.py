"""How often should a denoiser see its own first guess while it trains?

Self-conditioning (arXiv 2208.04202) shows the network its guess of x_0 from the look before; training imitates that
for a share of each batch.  Half is everybody's choice.  LD4LG (arXiv 2212.09462, Table 4): MAUVE .72 with it, .48
without; TEncDM (2402.19097, Figures 2 and 3): better with it, and best near 50 steps, as guesses grow with each step.
Whether more than half helps is open (a note about 2604.02028 claims so for .95), so it is an arm.

    python studies/ablation_self_conditioning.py --dry-run      what would run, and what is already there
    python studies/ablation_self_conditioning.py                here where there is no GPU, else at paper size
"""

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.tencdm import tencdm, tencdm_laptop

study = Study(
    name="ablation_self_conditioning",
    question="How often should a denoiser see its own first guess?",
    expectation="Half of the time beats never by far; beyond half, little changes.",
    scales={"laptop": Scale(tencdm_laptop), "paper": Scale(tencdm, Resources(gpus=1))},
    arms={
        "half": Arm({"system.self_conditioning": 0.5}),
        "never": Arm({"system.self_conditioning": 0.0}),
        "a quarter": Arm({"system.self_conditioning": 0.25}),
        "nearly always": Arm({"system.self_conditioning": 0.95}),
    },
    report=(
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"),
        Maximise("test/mauve"), Minimise("test/perplexity"), Minimise("test/judge_nll"),
        Maximise("test/diversity"), Watch("test/memorisation"), Maximise("valid/context_gain"),
    ),
    seeds=3,
)

if __name__ == "__main__":
    main(study)
