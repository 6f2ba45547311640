"""Following a job from here: its log is printed once, whatever the connection does, until it ends; then its exit code.

    tail  ->  Log: what is new of it, without Ray's own first lines  ->  this terminal
     ^ a connection that breaks is made again, for PATIENCE; the job does not notice
"""

import asyncio
import re
import sys
import time
from typing import Any

import aiohttp

from studies.engine.halt import Halt
from studies.engine.study import BadInput
from studies.engine.tunnel import Way

BEGUN = "Running entrypoint for job "     # what Ray writes before a job's own lines
PATIENCE = 600.0                        # seconds without an answer, after which following ends


def follow(client: Any, way: Way, job: str) -> Any:
    """Print the job's log until it ends; what Ray then says of it.   Halt: nobody answers any more"""
    log, answered = Log(job), time.monotonic()
    while True:
        try:
            asyncio.run(tail(client, job, log))
            info = client.get_job_info(job)
            answered = time.monotonic()
            if info.status.is_terminal():
                return info
            time.sleep(0.3)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:       # requests' are OSErrors
            if "does not exist" in str(error):
                raise Halt(f"Ray was started anew on {way.name}, and knows nothing of {job}.  The same command "
                           "continues") from None
            if time.monotonic() - answered > PATIENCE:
                raise Halt(f"{way.name} has not answered for {PATIENCE / 60:.0f} minutes ({last_line(error)}); the "
                           "same command looks for the study again") from None
            way.mend()


async def tail(client: Any, job: str, log: "Log") -> None:
    log.rewind()
    async for text in client.tail_job_logs(job):
        log.take(text)


class Log:
    """What has come of a job's log, and how much of that is printed."""

    def __init__(self, job: str):
        self.mark, self.printed, self.text = f"{BEGUN}{job}", 0, ""

    def rewind(self) -> None:
        """It comes from its beginning again."""
        self.text = ""

    def take(self, text: str) -> None:
        self.text += text
        begun = self.text.find(self.mark)
        first = self.text.find("\n", begun) + 1
        if begun >= 0 and first:
            fresh = self.text[first + self.printed:]
            sys.stdout.write(fresh)
            sys.stdout.flush()
            self.printed += len(fresh)


def exit_code(info: Any) -> int:
    """The command's, where it came so far.   BadInput, Halt: it did not"""
    if info.status == "STOPPED":
        return 130
    if info.driver_exit_code is not None:
        code = int(info.driver_exit_code)
        return code if code >= 0 else 128 - code            # ended by a signal, as a shell says it
    if re.search("no space left", str(info.message), re.I):
        raise BadInput("the head's disk is full: Ray cannot unpack the command there.  Make room on it, then the same "
                       "command")
    raise Halt(f"Ray ended the job: {last_line(info.message)}.  The same command continues")


def last_line(problem: Any) -> str:
    """Of what somebody said: it says the most."""
    lines = [line.strip() for line in str(problem or "").splitlines() if line.strip()]
    return (lines[-1] if lines else type(problem).__name__)[:300]
