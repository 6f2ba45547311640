"""A toy study as a command, for tests that send it away: its cells take milliseconds, or training.pause a step."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))         # workers find the trial under the same name

from studies.engine.main import main  # noqa: E402
from studies.engine.study import Arm, Minimise, Scale, Study  # noqa: E402
from tests.fake_trial import recipe  # noqa: E402

study = Study(name="away", question="Which?", report=(Minimise("test/error"),), seeds=1,
              arms={"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})}, scales={"laptop": Scale(recipe)})

if __name__ == "__main__":
    main(study)
