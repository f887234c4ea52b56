"""Signals that cannot teach: rewards that never vary (`alarms.no_spread`), responses that never end (`length`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlsys.algorithms import advantages
from rlsys.config.schema import Config
from rlsys.rewards import registry
from rlsys.rewards.entry import labels_of
from rlsys.types import Reward, ScoredGroup

# A share of responses at the length limit from which on the limit, and not the policy, decides how they end.
CUT_SHARE = 0.5


@dataclass(frozen=True)
class Finding:
    """Something that one step shows; `kind` is the same each time that it comes."""

    alarm: str  # the alarm that it belongs to: its option, under `alarms`
    kind: str
    text: str


class Signals:
    """The look at what a step could learn from."""

    def __init__(self, config: Config, best: Mapping[str, float] | None = None) -> None:
        """Look at the rewards that count in the total, and at the responses.

        Args:
            config: the run's configuration.
            best: `best` at the checkpoint that the run continues from.
        """
        self.best = dict(best or {})  # the highest value of each reward that ever varied
        labels = labels_of(config)
        # A value that a function gives where there is nothing to judge, such as a penalty that nobody deserves.
        rests = {label: registry.fact(str(spec["name"]), "rests_at", None) for label, spec in labels}
        self._rests = {label: rests[label] for label, spec in labels if spec.get("weight", 1.0) != 0}
        estimator = str(config.algorithm.advantage["name"])
        self._compares_groups = advantages.registry.fact(estimator, "min_group_size", 1) > 1
        self._rollout = config.rollout

    def find(self, groups: Sequence[ScoredGroup], num_without_spread: int) -> Iterator[Finding]:
        """Yield everything that a step shows.

        Args:
            groups: all groups sampled for it.
            num_without_spread: how many of them have equal rewards only.
        """
        finishes = [summary.finish_reason for group in groups for summary in group.rollout.summaries]
        cut = sum(finish == "length" for finish in finishes) / len(finishes)
        if self._rollout.ignore_eos:  # asked for
            cut = 0.0
        if cut == 1:
            yield Finding("length", "truncated", self._cut_text("all responses are"))
        elif cut >= CUT_SHARE:
            yield Finding("length", "length_limit", self._cut_text("most responses are"))
        rewards = [reward for group in groups for reward in group.rewards]
        constant = []
        for label in self._rests:
            kind, text = self._of_reward(label, rewards, is_cut=cut == 1)
            if kind:
                constant.append(label)
            if text:
                yield Finding("no_spread", kind, text)
        # Where every reward is constant no group can have spread: that has been said already.
        if self._compares_groups and num_without_spread == len(groups) and len(constant) < len(self._rests):
            yield Finding(
                "no_spread",
                "no_spread",
                "in every group all responses get the same reward, so nothing is learned. Likely cause: the prompts "
                "are all too hard or all solved, or the responses are alike "
                f"(rollout.temperature={self._rollout.temperature:g}). Choose prompts that are sometimes solved, or "
                "draw more of them per step (algorithm.groups.zero_variance=resample)",
            )

    def _of_reward(self, label: str, rewards: Sequence[Reward], *, is_cut: bool) -> tuple[str, str]:
        """Return the kind, empty for a reward that varies, and the text, empty for one that is as it should be."""
        parts = [reward.parts[label] for reward in rewards]
        if all(part.outcome == "not_applicable" for part in parts):
            return f"not_applicable/{label}", (
                f"reward '{label}' never applies: its function returns None for every response. Likely cause: the "
                "answers in the data are missing, in another column (data.columns) or in a form that it cannot read"
            )
        values = {part.value for part in parts if part.outcome == "ok" and part.value is not None}
        if len(values) != 1 or len(parts) < 2:
            if values:
                self.best[label] = max(*values, self.best.get(label, max(values)))
            return "", ""
        (value,) = values
        kind = f"constant/{label}/{value:g}"
        if value == self._rests[label] or self.best.get(label) == value:  # learned: it varied before
            return kind, ""
        return kind, (
            f"reward '{label}' is {value:g} for every response, so it teaches nothing. Likely cause: "
            f"{self._why_constant(label, value, is_cut=is_cut)}. The files in rollouts/ show what it judged"
        )

    def _why_constant(self, label: str, value: float, *, is_cut: bool) -> str:
        if label in self.best:
            return "it varied before, so the policy gives one kind of response now, or a service returns a default"
        if is_cut:
            return "no response ends by itself, so none comes to what the reward looks for"
        if value == 0:
            return (
                "no response has what it looks for: the prompts do not ask for it, the answers in the data have "
                "another form, or it looks for tags that are special tokens, which are removed from the text before "
                "(scoring.skip_special_tokens=false keeps them)"
            )
        return (
            "it does not depend on the response (of a chat message, len(completion) counts messages and is always 1), "
            "or every response deserves it"
        )

    def _cut_text(self, who: str) -> str:
        return (
            f"{who} cut off at rollout.max_response_tokens={self._rollout.max_response_tokens}. Likely cause: the "
            "limit is too low for this model and task, or no token that the model ends with is among the stop tokens "
            "(see the table at the start). Raise the limit, or give the model's end token"
        )
