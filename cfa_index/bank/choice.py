"""The index that was asked for, built and tuned; or the best within a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfa_index.bank import cuvs
from cfa_index.bank.builder import LISTS_BYTES, BuiltIndex, build_faiss
from cfa_index.bank.card import card_of
from cfa_index.bank.cards import Bank
from cfa_index.bank.index import SearchIndex
from cfa_index.bank.recipes import Recipe, recipes_of
from cfa_index.bank.state import IndexState, IndexTrial
from cfa_index.bank.threads import shared_threads
from cfa_index.bank.tuning import Truth, tune
from cfa_index.card_memory import card_memory
from cfa_index.errors import BankError, CardMemoryError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.footprint import OTHER_INDEX
from cfa_index.specs import IndexSpec


@dataclass(frozen=True, kw_only=True)
class IndexChoice:
    """What became of an `IndexSpec`.

    Attributes:
        index: None for Flat.
        state: of the index, or of Flat.
        trials: all that was tried, in order; one of them was chosen.
    """

    index: SearchIndex | None
    state: IndexState
    trials: tuple[IndexTrial, ...]


@shared_threads()
def make_index(
    vectors: NDArray[np.float32],
    spec: IndexSpec,
    queries: NDArray[np.float32],
    *,
    k: int,
    patches_per_image: int,
    seed: int,
    budget_bytes: int = LISTS_BYTES,
    scratch_dir: Path | None = None,
    flat: Bank | None = None,
    listener: Listener = ignore,
) -> IndexChoice:
    """Build the index that a spec asks for and tune it on held-out patches.

    Args:
        vectors: (M, D') float32, may be memory mapped.
        spec: which one, the recall it has to reach, and the budgets of `auto`.
        queries: (n, D') float32 good patches that are not in the bank, image after image.
        k: neighbours that the model asks for.
        patches_per_image: queries of one image, whose latency is measured.
        seed: of sampling and of k-means.
        budget_bytes, scratch_dir: inverted lists larger than this go to disk there, see `build_faiss`.
        flat: a bank of these vectors, on the device where the index is to search; None for one on the CPU.
        listener: told of progress; and, in a notice, of a recall that was not reached.

    Raises:
        BankError: FAISS cannot make it; or, for `auto`, nothing keeps within the budgets.
        CardMemoryError: a card has no room for it, or runs out.
        DeviceError: a card is to build `cagra` without cuVS.
    """
    count, d = vectors.shape
    truth = Truth(vectors, queries, k=k, patches_per_image=patches_per_image, flat=flat)
    card = None if truth.flat.device.type == "cpu" else card_of(truth.flat.device, truth.flat.card)
    recipes = recipes_of(
        spec.factory, count, d, on_card=card is not None, with_cuvs=card is not None and cuvs.has_cuvs()
    )
    build = partial(build_faiss, seed=seed, budget_bytes=budget_bytes, scratch_dir=scratch_dir, card=card)
    trials: list[IndexTrial] = []
    best, best_rank = -1, (1.0, 0.0)
    index: SearchIndex | None = None  # of all that were tried only the best is held
    for recipe in recipes:
        try:
            with card_memory(truth.flat.device, f"the index {recipe.factory}", lower=OTHER_INDEX):
                made, state, reached = _made(recipe, truth, spec, build, listener)
        except (BankError, CardMemoryError) as error:
            if len(recipes) == 1:
                raise
            trials.append(IndexTrial(**vars(recipe), state=None, verdict=error.got))
            continue
        verdict = _shortfall(state, spec, reached)
        rank = (1.0, -state.recall_at_1) if verdict else (0.0, state.latency_ms)
        if best < 0 or rank < best_rank:
            best, best_rank, index = len(trials), rank, made
        trials.append(IndexTrial(**vars(recipe), state=state, verdict=verdict))
        del made
    chosen = trials[best] if best >= 0 else None
    if chosen is None or (chosen.verdict and spec.factory == "auto"):
        raise _nothing_fits(spec, trials)
    if chosen.verdict:  # a user who named an index gets it, and is told
        listener(Notice(message=f"{chosen.factory}: {chosen.verdict}"))
    assert chosen.state is not None
    if not chosen.verdict and chosen.state.recall_at_1 < spec.min_recall:
        listener(
            Notice(
                message=f"{chosen.factory}: recall@1 of {chosen.state.recall_at_1:.4f} on patches that did not tune it, "
                f"{spec.min_recall:g} were asked for"
            )
        )
    return IndexChoice(
        index=index,
        state=chosen.state,
        trials=tuple(
            replace(trial, verdict="chosen" if trial is chosen else trial.verdict or "slower")
            for trial in trials
        ),
    )


def _made(
    recipe: Recipe,
    truth: Truth,
    spec: IndexSpec,
    build: Callable[..., BuiltIndex],
    listener: Listener,
) -> tuple[SearchIndex | None, IndexState, bool]:
    """The index of a recipe, tuned and measured, and whether it finds enough."""
    count = len(truth.vectors)
    state = IndexState(
        name=recipe.name,
        factory=recipe.factory,
        parameters={},
        k=truth.k,
        queries=0,
        resident_bytes=truth.vectors.nbytes,
        latency_ms=0.0,
    )
    if state.is_flat:
        return None, replace(state, latency_ms=truth.latency_ms(truth.flat)), True
    with stage(listener, f"index {recipe.factory}", count, "memories") as advance:
        index = SearchIndex(build(truth.vectors, recipe.factory, advance=advance), state)
    index = index.to(truth.flat.tensor, truth.flat.card)
    with stage(listener, "tuning", None, "searches"):
        truth = truth.where(index)
        reached = tune(index, truth, spec.min_recall)
        truth.measure(index)
    return index, index.state, reached


def _shortfall(state: IndexState, spec: IndexSpec, reached: bool) -> str:
    """Why an index does not do; empty when it does."""
    if not reached:
        return f"recall@1 of {state.recall_at_1:.4f}, {spec.min_recall:g} were asked for"
    memory, latency = spec.budget_memory_bytes, spec.budget_latency_ms
    if memory is not None and state.resident_bytes > memory:
        return f"{_mib(state.resident_bytes)} resident, {_mib(memory)} allowed"
    if latency is not None and state.latency_ms > latency:
        return f"{state.latency_ms:.3g} ms an image, {latency:g} ms allowed"
    return ""


def _nothing_fits(spec: IndexSpec, trials: list[IndexTrial]) -> BankError:
    """The error that names the nearest miss: the least factor by which a limit is exceeded."""

    def excess(trial: IndexTrial) -> float:
        state = trial.state
        if state is None:
            return float("inf")
        memory, latency = spec.budget_memory_bytes, spec.budget_latency_ms
        missed = (1 - state.recall_at_1 + 1e-9) / (1 - spec.min_recall + 1e-9)
        return max(
            missed if "recall" in trial.verdict else 0.0,
            state.resident_bytes / memory if memory else 0.0,
            state.latency_ms / latency if latency else 0.0,
        )

    nearest = min(trials, key=excess)
    limits = [f"recall@1 of {spec.min_recall:g}"]
    limits += [_mib(spec.budget_memory_bytes)] if spec.budget_memory_bytes else []
    limits += [f"{spec.budget_latency_ms:g} ms an image"] if spec.budget_latency_ms else []
    return BankError(
        expected=f"an index within {', '.join(limits)}",
        got=f"none of {len(trials)}; the nearest miss is {nearest.factory}: {nearest.verdict}",
        remedy="raise that limit, or build a smaller bank",
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"
