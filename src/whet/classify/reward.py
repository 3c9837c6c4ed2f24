"""A classifier as a reward: what the trainers GRPO and RLOO of TRL call after each generation.

The reward of a text is the classifier's log-odds of the target class. For two classes that is the
model's one logit: no probability that saturates at 1 lies in between.

TRL can also load a reward model by its id. It then cuts texts into tokens without the special ones
([CLS], a beginning mark, ...) that the classifier may have been trained with, and the scores differ
(``_calculate_rewards`` of TRL 1.16, ``trl/trainer/grpo_trainer.py``). So a classifier is handed
over as a function; :func:`reward_model_id` says of a model folder whether its id is as good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from whet.classify.risks import FloatArray
from whet.errors import WhetError, did_you_mean

Message = dict[str, Any]


class Classifier(Protocol):
    """What a reward is made of; a fitted :class:`whet.LabelRefiner` is one."""

    classes_: NDArray[Any]

    def decision_function(self, texts: list[str]) -> FloatArray:
        """Return log-odds of ``classes_[1]``, shape (n,), or scores of shape (n, K)."""
        ...


class RewardFunction:
    """Log-odds of a class as a reward, for ``reward_funcs`` of TRL's GRPOTrainer and RLOOTrainer.

    Parameters
    ----------
    classifier : LabelRefiner
        Fitted on texts that were built as :func:`reward_text` builds them.
    target : label, optional
        The class to reward; of two classes the second unless named.

    Raises
    ------
    WhetError
        If there is no such class, or there are more than two and none is named.

    Attributes
    ----------
    target : label
    __name__ : str
        ``whet_`` and the target; TRL logs the rewards under this name.

    Examples
    --------
    >>> import numpy as np
    >>> class Longer:
    ...     classes_ = np.array(["short", "long"])
    ...     def decision_function(self, texts):
    ...         return np.array([len(text) - 10.0 for text in texts])
    >>> reward = RewardFunction(Longer())
    >>> reward(prompts=["How? ", "How? "], completions=["So.", "Very well."])
    [-2.0, 5.0]
    >>> RewardFunction(Longer(), "short")(["How? "], ["So."])
    [2.0]
    >>> reward.__name__
    'whet_long'
    """

    def __init__(self, classifier: Classifier, target: Any = None) -> None:  # noqa: ANN401
        classes = classifier.classes_.tolist()
        if target is None and len(classes) > 2:
            raise WhetError(
                f"there are {len(classes)} classes and no target: name the one to reward, of "
                + ", ".join(repr(name) for name in classes[:20])
            )
        self.target = classes[1] if target is None else target
        if self.target not in classes:
            near = did_you_mean(str(self.target), map(str, classes))
            raise WhetError(f"target = {self.target!r} is no class of the classifier{near}")
        tuned = getattr(classifier, "tuned_", None)
        if tuned is not None and tuned.processes.size > 1:
            raise WhetError(
                f"the classifier was fitted in {tuned.processes.size} processes, which score texts "
                "together: save it, and load it for the reward"
            )
        self._classifier = classifier
        self._column = classes.index(self.target)
        self._tokenizer = None if tuned is None else tuned.network.tokenizer
        self.__name__ = "whet_" + re.sub(r"\W+", "_", str(self.target))[:40]

    @classmethod
    def from_pretrained(cls, folder: Any, target: Any = None) -> Self:  # noqa: ANN401
        """Return the reward of a classifier that was saved: a model folder, or its run folder.

        Raises
        ------
        WhetError
            If the folder is none of these, or there is no such class.
        """
        from whet.classify.refiner import LabelRefiner

        return cls(LabelRefiner.from_pretrained(folder), target)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        **kwargs: Any,  # noqa: ANN401
    ) -> list[float | None]:
        """Return a reward for each completion.

        Parameters
        ----------
        prompts, completions : sequences of str, or of lists of messages, length n
            See :func:`reward_text`.
        **kwargs
            What else TRL hands over; not used.

        Returns
        -------
        list of float or None, length n
            In the order of the completions. None, which TRL leaves out of means and gradients,
            where a completion is None or its score is no finite number.

        Raises
        ------
        WhetError
            If there are not as many prompts as completions, or one is of neither kind.
        """
        del kwargs
        if len(prompts) != len(completions):
            raise WhetError(
                f"{len(prompts)} prompts and {len(completions)} completions: give a prompt for "
                "each completion"
            )
        rows = [row for row, completion in enumerate(completions) if completion is not None]
        texts = [reward_text(prompts[row], completions[row], self._tokenizer) for row in rows]
        rewards: list[float | None] = [None] * len(completions)
        for row, score in zip(rows, self._score(texts).tolist(), strict=True):
            rewards[row] = score if math.isfinite(score) else None
        return rewards

    def _score(self, texts: list[str]) -> FloatArray:
        """Return the log-odds of the target, shape (n,)."""
        if not texts:
            return np.empty(0)
        scores = self._classifier.decision_function(texts)
        if scores.ndim == 1:
            return scores if self._column == 1 else -scores
        others = logsumexp(np.delete(scores, self._column, axis=1), axis=1)
        odds: FloatArray = scores[:, self._column] - others
        return odds


def reward_text(prompt: Any, completion: Any, tokenizer: Any = None) -> str:  # noqa: ANN401
    r"""Return the text that is scored for a prompt and a completion.

    Texts of a corpus that are built with it are what the classifier meets as a reward.

    Parameters
    ----------
    prompt, completion : str, or list of messages
        Strings are joined with nothing in between, as TRL does. Messages have ``role`` and
        ``content``; prompt and completion make one conversation.
    tokenizer : tokenizer of transformers, optional
        Its chat template writes the conversation, as TRL does. Without a tokenizer or a template
        the contents are joined by blank lines, without roles.

    Raises
    ------
    WhetError
        If one is a string and the other is not, or they are neither.

    Examples
    --------
    >>> reward_text("The sky is", " blue.")
    'The sky is blue.'
    >>> reward_text([{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Yo"}])
    'Hi\n\nYo'
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    messages = [*_messages(prompt), *_messages(completion)]
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    return "\n\n".join(content for m in messages if (content := _content(m)))


def reward_model_id(folder: Any) -> str:  # noqa: ANN401
    """Return the path of a model folder that TRL may load as a reward model by its id.

    Parameters
    ----------
    folder : path
        What ``save_pretrained`` wrote, or the run folder that holds it.

    Returns
    -------
    str
        For ``reward_funcs``. The reward is the log-odds of the second class.

    Raises
    ------
    WhetError
        If TRL could not load it, or would score texts otherwise than whet; says why.

    Examples
    --------
    >>> reward_model_id("no/folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: no/folder holds no fine-tuned classifier: TRL loads nothing else by ...
    """
    from whet.classify.tuned import tuned_folder
    from whet.finetune.export import refusal_of_id

    found = tuned_folder(Path(folder))
    if found is None:
        raise WhetError(
            f"{folder} holds no fine-tuned classifier: TRL loads nothing else by its id, so pass "
            "RewardFunction.from_pretrained(folder)"
        )
    if refusal := refusal_of_id(found):
        raise WhetError(
            f"{folder} cannot be a reward model by its id, {refusal}: pass "
            "RewardFunction.from_pretrained(folder)"
        )
    return str(found)


def _messages(part: Any) -> list[Message]:  # noqa: ANN401
    if isinstance(part, list) and all(isinstance(m, dict) and "role" in m for m in part):
        return part
    raise WhetError(
        f"a prompt or completion is {str(part)[:40]!r}: both must be strings, or both lists of "
        "messages with role and content"
    )


def _content(message: Message) -> str:
    """Return the text of a message, whose content may be absent or in parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
