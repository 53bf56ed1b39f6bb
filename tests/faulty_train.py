"""scripts/train.py with one process that fails: `FAULT=RANK,WHEN,HOW python faulty_train.py ...`.

WHEN: start (before the processes meet), or the step. HOW: kill, or error.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pytorch_lightning.strategies import DDPStrategy

from fcn.app import rank, run
from fcn.config import REPOSITORY, UserError
from fcn.training.module import SegmentationModule

FAILING, WHEN, HOW = os.environ["FAULT"].split(",")


def failing(original: Callable[..., Any], due: Callable[[Any], bool]) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any) -> Any:
        if rank() == int(FAILING) and due(self):
            if HOW == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("x.jpg: it is damaged; mend it")
        return original(self, *arguments)

    return method


if WHEN == "start":
    DDPStrategy.setup_distributed = failing(DDPStrategy.setup_distributed, lambda _: True)
else:
    SegmentationModule.training_step = failing(
        SegmentationModule.training_step, lambda self: self.trainer.global_step == int(WHEN)
    )

sys.path.insert(0, str(REPOSITORY / "scripts"))
import train  # noqa: E402

run("train", train.main, train.complete_command_line)
