"""`python` graders: `grade(sample, item)` of a tenant, in the sandbox that runs HumanEval."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bmt_core import GraderError
from bmt_core.fine_tuning.graders import PythonCode

from bmt_trainer.evaluation.sandbox import programs
from bmt_trainer.evaluation.sandbox.programs import Sandbox

_RESULT = "_bmt_score"


class PythonScores:
    """Scores by code that a tenant wrote."""

    def __init__(self) -> None:
        self._sandbox = Sandbox(setting="grader python")

    def check(self) -> None:
        """Raise ConfigError if programs cannot be isolated here."""
        programs.check(self._sandbox)

    def score(self, grader: PythonCode, item: Mapping[str, Any], output: str) -> float:
        """The number that the code returns. Raises GraderError, ConfigError."""
        sample = {
            "output_text": output,
            "choices": [{"message": {"role": "assistant", "content": output}}],
        }
        values = (json.dumps(json.dumps(value)) for value in (sample, item))
        given, row = values
        program = (
            f"{grader.source}\n"
            f"import json as _bmt_json\n"
            f"{_RESULT} = repr(float(grade(_bmt_json.loads({given}), _bmt_json.loads({row}))))\n"
        )
        text = self._sandbox.result(program, _RESULT)
        try:
            number = float(text) if text is not None else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise GraderError(
                f"python {grader.name!r}: grade(sample, item) ended without a finite number, for "
                f"the answer {output[:60]!r}; it has {self._sandbox.cpu_seconds} s of the "
                f"processor and {self._sandbox.memory_bytes >> 20} MiB, no network and no "
                "new process"
            )
        return number
