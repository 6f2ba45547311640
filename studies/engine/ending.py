"""How a command ends: what went wrong, said in one screen, and its exit code.

    0 all fine    1 a cell failed or diverged    2 bad input    3 halted by something outside    130 stopped
"""

from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from studies.engine.halt import Halt, disk_full
from studies.engine.study import BadInput
from trainables.config import ConfigError


def ending(work: Callable[[], int], console: Console) -> int:
    """The exit code that `work` returns, or that of what ended it."""
    def say(text: str) -> None:
        Console(stderr=True, highlight=False).print(Text(text), soft_wrap=True)

    try:
        return work()
    except (BadInput, ConfigError) as error:
        say(f"error: {error}")
        return 2
    except Halt as error:
        say(f"halted: {error}")
        return 3
    except OSError as error:
        if not disk_full(error):
            raise
        say(f"halted: a disk is full ({error}).  Make room, and the same command continues")
        return 3
    except KeyboardInterrupt:
        console.print(Text("stopped; the same command continues from here"))
        return 130
