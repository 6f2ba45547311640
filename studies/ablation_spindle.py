"""Is it worth hiding words in the order of what they tell?

DiffusionBERT (arXiv 2211.15029, Table 2) hides frequent words last, so that they are written first, and reports a
perplexity of 63.78 with this spindle and 78.76 without.  Its spindle is centred on each sentence, which a sampler does
not know, and what it reports is no bound; here `bound_per_word` is one for every arm, and what an arm's own objective
sums to stands beside it as bound_own_per_token, to be read against bound_per_token.

    python studies/ablation_spindle.py --dry-run          what would run, and what is already there
    python studies/ablation_spindle.py                    here where there is no GPU, else at paper size
    python studies/ablation_spindle.py --data texts.csv:column --test-data other.csv:column
    python studies/ablation_spindle.py --report           the table again, from what is recorded
"""

from studies.engine.main import main
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.diffusion.objectives import D3pm, Mdlm
from trainables.diffusionbert import diffusionbert, diffusionbert_laptop

MASKED, MIXTURE = Mdlm(), D3pm(steps=2048, cross_entropy=20.48)
PUBLISHED = D3pm(steps=2048, cross_entropy=20.48, as_published=True)


def arm(objective: Mdlm | D3pm, spindle: float = 0.0, measure: str = "frequency") -> Arm:
    return Arm({"system.objective": objective, "system.process.spindle": spindle, "system.measure": measure})


study = Study(
    name="ablation_spindle",
    question="Is it worth hiding words in the order of what they tell?",
    expectation="The published gain in perplexity is mostly its sum not being a bound: a true one moves little, and "
                "MDLM's objective gains more than any order of words.",
    scales={"laptop": Scale(diffusionbert_laptop), "paper": Scale(diffusionbert, Resources(gpus=1))},
    arms={
        "all alike": arm(MASKED),
        "by frequency": arm(MASKED, 0.3),
        "by information": arm(MASKED, 0.2, "information"),
        "D3PM": arm(MIXTURE),
        "D3PM as published": arm(PUBLISHED, 0.3),
    },
    report=(
        Minimise("valid/bound_per_word", margin=0.02),
        Watch("valid/bound_per_token"), Watch("valid/bound_own_per_token"),
        Minimise("test/illegal", margin=0.02), Minimise("test/oracle_nll", margin=0.02),
        Minimise("test/total_variation"),
        Minimise("test/judge_nll"), Minimise("test/fd"), Minimise("test/perplexity"),
        Maximise("test/diversity"), Watch("test/memorisation"), Minimise("test/departure"),
    ),
    seeds=3,
)

if __name__ == "__main__":
    main(study)
