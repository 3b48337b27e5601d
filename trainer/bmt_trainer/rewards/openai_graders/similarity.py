"""Metrics of `text_similarity`, each a well-kept library's, from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from bmt_trainer.errors import ConfigError

# Texts are bounded by a row and an answer; the metrics' time grows with their product.
_MAX_CHARACTERS = 20_000


def similarity(metric: str, text: str, reference: str) -> float:
    """The likeness of a text to a reference. Raises ConfigError without the metric's library."""
    # Some of the libraries divide by the number of words.
    if not text.strip() or not reference.strip():
        return float(text.strip() == reference.strip())
    return float(_metric(metric)(text[:_MAX_CHARACTERS], reference[:_MAX_CHARACTERS]))


@cache
def _metric(name: str) -> Callable[[str, str], float]:
    try:
        return _made(name)
    except ImportError as error:
        raise ConfigError(
            f"grader: text_similarity by {name} needs {error.name}, which is not installed; pip "
            "install 'bmt-adapters[graders]' for this worker"
        ) from None


def _made(name: str) -> Callable[[str, str], float]:
    if name == "fuzzy_match":
        from rapidfuzz import fuzz

        return lambda text, reference: fuzz.ratio(text, reference) / 100
    if name == "bleu":
        import sacrebleu

        return lambda text, reference: sacrebleu.sentence_bleu(text, [reference]).score / 100
    if name == "gleu":
        from nltk.translate.gleu_score import sentence_gleu

        return lambda text, reference: sentence_gleu([reference.split()], text.split())
    from rouge_score.rouge_scorer import RougeScorer

    kind = "rougeL" if name == "rouge_l" else name.replace("_", "")
    scorer = RougeScorer([kind], use_stemmer=False)
    return lambda text, reference: scorer.score(reference, text)[kind].fmeasure
