"""The stages of one fit, and which of them an epoch belongs to.

The stage is derived from the epoch and from where the stages ended, never from a history of calls, so that a resumed
run lands in the right stage.
"""

from dataclasses import asdict, dataclass
from typing import Literal

Stage = Literal["head", "finetune"]


@dataclass
class StagePlan:
    """The head alone first, then head and suffix.

    Attributes:
        head_epochs: planned epochs of the head stage.
        finetune_epochs: planned epochs of the fine-tuning stage.
        head_end: first epoch after the head stage, once it has ended, as planned or by patience; else None.
        end: first epoch after the fine-tuning stage, once it has ended; else None.

    Example:
        >>> plan = StagePlan(head_epochs=2, finetune_epochs=3)
        >>> [plan.stage(epoch) for epoch in range(plan.total_epochs)]
        ['head', 'head', 'finetune', 'finetune', 'finetune']
        >>> plan.end_stage(0)
        >>> plan.total_epochs
        4
    """

    head_epochs: int
    finetune_epochs: int
    head_end: int | None = None
    end: int | None = None

    @property
    def finetune_start(self) -> int:
        """First epoch of the fine-tuning stage."""
        return self.head_epochs if self.head_end is None else self.head_end

    @property
    def total_epochs(self) -> int:
        """Number of epochs of both stages."""
        return self.finetune_start + self.finetune_epochs if self.end is None else self.end

    def stage(self, epoch: int) -> Stage:
        """Return the stage that an epoch belongs to."""
        return "head" if epoch < self.finetune_start else "finetune"

    def position(self, epoch: int) -> tuple[int, int]:
        """Return how many epochs of its stage lie before an epoch, and how many the stage was planned with."""
        if self.stage(epoch) == "head":
            return epoch, self.head_epochs
        return epoch - self.finetune_start, self.finetune_epochs

    def end_stage(self, epoch: int) -> None:
        """End the stage of this epoch with it."""
        if self.stage(epoch) == "head":
            self.head_end = epoch + 1
        else:
            self.end = epoch + 1

    def state_dict(self) -> dict[str, int | None]:
        """Return where stages ended, and how long they were planned."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Take over where stages ended; a stage that is planned longer than before is open again."""
        self.head_end, self.end = state["head_end"], state["end"]
        if self.head_epochs > (state["head_epochs"] or 0):
            self.head_end = None
        if self.finetune_epochs > (state["finetune_epochs"] or 0):
            self.end = None
