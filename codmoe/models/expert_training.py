"""How the experts are run in training, and what of their losses reaches the backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from codmoe.models.balance import GradientBalance
from codmoe.models.build import check_choice
from codmoe.models.checkpointing import checkpointed
from codmoe.models.dispatch import PyramidBank
from codmoe.models.experts.base import Expert
from codmoe.models.sequential import forward_backward
from codmoe.structures import ExpertOutput

EXECUTIONS = ("together", "sequential", "checkpoint")
NORMALIZATIONS = (None, "maps", "gradient")


class ExpertTraining(nn.Module):
    """Runs every chosen expert with its own loss.

    Args:
        names: Experts.
        execution: ``"together"`` keeps the activations of all experts until the backward pass;
            ``"sequential"`` finishes an expert's backward pass before the next one begins, at no
            cost, where no loss compares or mixes experts; ``"checkpoint"`` computes each expert a
            second time in the backward pass.
        normalization: None; ``"maps"`` divides an expert's losses by the number of maps it
            supervises, 1 + its side maps; ``"gradient"`` is :class:`GradientBalance`.
        weight: Factor on every loss.

    Raises:
        ValueError: ``execution`` or ``normalization`` is unknown.
    """

    def __init__(
        self, names: Sequence[str], *, execution: str, normalization: str | None, weight: float
    ):
        super().__init__()
        check_choice("expert_execution", execution, EXECUTIONS)
        check_choice("expert_loss_normalization", normalization, NORMALIZATIONS)
        self.execution = execution
        self.normalization = normalization
        self.weight = weight
        self.balance = GradientBalance(names) if normalization == "gradient" else None
        self.scale_loss: Callable[[Tensor], Tensor] | None = None
        """``GradScaler.scale`` of the optimiser, which a hook of the engine gives."""

    def forward(
        self,
        experts: Mapping[str, Expert],
        bank: PyramidBank,
        rows: Mapping[str, Tensor | None],
        targets: Tensor,
        progress: float,
    ) -> tuple[dict[str, ExpertOutput], dict[str, Tensor]]:
        """Run and judge the experts.

        Args:
            experts: All experts by name.
            bank: Images and pyramids of the batch.
            rows: As of :func:`run_experts`.
            targets: Ground truth in {0, 1}, (N, 1, H, W).
            progress: Share of training done, in [0, 1].

        Returns:
            Outputs by expert, without gradient for ``"sequential"``, and losses by
            ``<expert>.loss_<part>``.
        """
        if self.balance is not None and self.training:
            self.balance.update()
        outputs, losses = {}, {}
        # Pyramids of further scales are not made before those who read them run.
        for name in sorted(rows, key=lambda name: len(experts[name].input_scales)):
            outputs[name], losses[name] = self._run(
                name, experts[name], bank, rows[name], targets, progress
            )
        merged = {key: value for name in rows for key, value in losses[name].items()}
        return {name: outputs[name] for name in rows}, merged

    def monitors(self) -> dict[str, Tensor]:
        """Scalars for the log, none of them minimised."""
        return self.balance.monitors() if self.balance is not None else {}

    def _run(
        self,
        name: str,
        expert: Expert,
        bank: PyramidBank,
        index: Tensor | None,
        targets: Tensor,
        progress: float,
    ) -> tuple[ExpertOutput, dict[str, Tensor]]:
        images = bank.images if index is None else bank.images[index]
        target = targets if index is None else targets[index]
        scales = len(expert.input_scales)
        levels = [level for scale in expert.input_scales for level in bank.get(scale, index)]
        if self.balance is not None:
            levels = self.balance.enter(name, levels)

        def run(levels: Sequence[Tensor]) -> tuple[ExpertOutput, dict[str, Tensor]]:
            per_scale = len(levels) // scales
            pyramids = [levels[i * per_scale : (i + 1) * per_scale] for i in range(scales)]
            output = expert(images, pyramids)
            output.rows = index
            # An expert's loss is a mean over its own images; every image of the batch counts alike.
            factor = self.weight * (len(target) / len(targets))
            if self.normalization == "maps":
                factor /= 1 + len(output.side_logits)
            parts = expert.loss(output, target, progress)
            return output, {f"{name}.loss_{part}": factor * v for part, v in parts.items()}

        if self.execution == "checkpoint":
            return checkpointed(run, levels, module=expert)
        if self.execution == "sequential":
            output, losses = forward_backward(
                run, levels, list(expert.parameters()), self.scale_loss
            )
            return _prediction_of(output), losses
        return run(levels)


def _prediction_of(output: ExpertOutput) -> ExpertOutput:
    """The map alone, without graph: all that monitors read."""
    return ExpertOutput(logits=output.logits.detach(), rows=output.rows)
