"""The contract between what is trained (a task) and how (the engine).

A task owns models and turns a batch into backward passes. It yields `Backward` for everything that needs a gradient, each as
soon as its forward pass is done, so that the activations of one objective are gone before the next is encoded; and `Report` for
the numbers to show, which are not always the numbers that are differentiated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vtp.config import OptimizerParams
from vtp.seeding import Draws

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Backward:
    """Loss terms of one forward pass and their weights (same keys; a missing weight is an error).

    A term is this rank's share: its mean over ranks is the term of the global batch.
    """

    terms: dict[str, Tensor]
    weights: dict[str, float]

    def total(self) -> Tensor:
        """The weighted sum.

        Raises:
            ValueError: a term has no weight.
        """
        for name in self.terms:
            if name not in self.weights:
                raise ValueError(f"the loss term {name!r} has no weight; weights are given for {', '.join(self.weights)}.")
        return torch.stack([self.weights[name] * term.float() for name, term in self.terms.items()]).sum()


@dataclass(frozen=True)
class Report:
    """Scalars to log for this step, as 0-d tensors on the device."""

    scalars: dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """One update within a step: the modules it trains and their optimizer. A GAN has two, everything else one.

    Attributes:
        start: the step of its first update, from which the warm-up counts.
        late: modules, or parts of them, whose learning rate is 0 before step `late_from`.
    """

    name: str
    modules: tuple[nn.Module, ...]
    optimizer: OptimizerParams
    start: int = field(default=0, kw_only=True)
    late: tuple[nn.Module, ...] = ()
    late_from: int = 0


@dataclass(frozen=True)
class Average:
    """`target` follows `source`: target <- decay(step) * target + (1 - decay(step)) * source after every step."""

    target: nn.Module
    source: nn.Module
    decay: Callable[[int], float]


@dataclass
class Task(ABC):
    """What is trained.

    Attributes:
        models: everything a checkpoint holds, averages and buffers included.
        phases: the updates of a step, in order.
        averages: the teachers and averaged copies.
        weights: of the reported terms, for the one number that a progress bar shows.
        steps: length of the training.
        batch: pictures of a global step.
        microbatch: pictures of one forward pass on a rank; None: all of them.
        frozen: helpers that no checkpoint holds; nothing in them is trained that is not one of `models` as well.
    """

    models: nn.ModuleDict
    phases: tuple[Phase, ...]
    averages: tuple[Average, ...]
    weights: dict[str, float]
    steps: int
    batch: int
    microbatch: int | None = field(default=None, kw_only=True)
    frozen: tuple[nn.Module, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        """The backward passes of one phase of step `draws.step`, and what to report of it."""

    def kind(self, step: int) -> int | None:
        """Steps of one kind do the same work, all that changes being draws: one can be recorded, and replayed for the others.

        None: a step of this training cannot be recorded.
        """
        return 0

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures worth a look now and then: name -> (n, 3, H, W) in [0, 1]."""
        return {}

    def to(self, device: torch.device) -> None:
        """Move everything to `device`."""
        for module in (self.models, *self.frozen):
            module.to(device)


def slices(rows: int, chunk: int | None) -> list[slice]:
    """Cut `rows` into equal pieces of `chunk`; None, or a chunk that holds them all, leaves one.

    Raises:
        ValueError: `rows` does not divide by `chunk`.
    """
    size = min(chunk or rows, rows)
    if rows % size:
        raise ValueError(
            f"{rows} pictures of a rank do not divide into micro-batches of {size}; set run.microbatch to a divisor, or to null."
        )
    return [slice(start, start + size) for start in range(0, rows, size)]


def chunk_of(rows: int, batch: int, microbatch: int | None) -> int | None:
    """Pictures of one forward pass where an objective sees `rows` of a rank's `batch`: as many passes as the batch is cut into.

    None: all at once.
    """
    if microbatch is None or microbatch >= batch:
        return None
    return max(1, rows * microbatch // batch)


Encoded = tuple[tuple[Tensor, ...], dict[str, Tensor]]


def whole_batch(
    encode: Callable[[slice], Encoded],
    loss: Callable[..., dict[str, Tensor]] | None,
    weights: dict[str, float],
    *,
    rows: int,
    chunk: int | None,
) -> Iterator[Backward | Report]:
    """Backward passes of a loss with statistics over the whole batch, in as many forward passes as memory asks for.

    `encode(rows)` gives embeddings, first dimension = those rows, and terms that are means over rows. `loss(*embeddings)` gives
    terms over all rows at once. Undivided this is one forward and one backward. Divided, embeddings are first computed without a
    graph, the loss is differentiated at the embeddings, and each piece is encoded again and given its gradient
    (gradient caching, arXiv 2101.06983); the sum is the gradient of the undivided batch.
    """
    pieces = slices(rows, chunk)
    if len(pieces) == 1:
        embeddings, terms = encode(pieces[0])
        terms = terms | (loss(*embeddings) if loss else {})
        yield Report({name: term.detach() for name, term in terms.items()})
        yield Backward(terms, weights)
        return
    leaves: tuple[Tensor, ...] = ()
    reported: dict[str, Tensor] = {}
    if loss is not None:
        # Without gradients only the embeddings are asked for; an `encode` whose terms cost something leaves them out.
        with torch.no_grad():
            cached = [encode(piece)[0] for piece in pieces]
        leaves = tuple(torch.cat(parts).requires_grad_() for parts in zip(*cached, strict=True))
        terms = loss(*leaves)
        reported = {name: term.detach() for name, term in terms.items()}
        # Fills the leaves' gradients, and those of parameters that the loss itself has (the logit scale).
        yield Backward(terms, weights)
    for piece in pieces:
        embeddings, terms = encode(piece)
        share = (piece.stop - piece.start) / rows
        scaled = {name: term * share for name, term in terms.items()}
        for name, term in scaled.items():
            reported[name] = reported.get(name, torch.zeros_like(term)).detach() + term.detach()
        surrogates = [
            (part * leaf.grad[piece]).sum() for part, leaf in zip(embeddings, leaves, strict=True) if leaf.grad is not None
        ]
        if surrogates:
            scaled["cached"] = torch.stack(surrogates).sum()
        yield Backward(scaled, weights | {"cached": 1.0})
    yield Report(reported)
