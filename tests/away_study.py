"""A toy study as a command, for tests that send it away."""

from fake_trial import recipe

from studies.engine.main import main
from studies.engine.study import Arm, Minimise, Scale, Study

study = Study(name="away", question="Which?", report=(Minimise("test/error"),), seeds=1,
              arms={"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})}, scales={"laptop": Scale(recipe)})

if __name__ == "__main__":
    main(study)
