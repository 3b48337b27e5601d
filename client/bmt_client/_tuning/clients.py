"""The parts of both clients that have files and jobs."""

from __future__ import annotations

from typing import TypeVar

from .._retry import RetryPolicy
from .._transport import Flow
from .files import AsyncFiles, Files
from .jobs import AsyncJobs, Jobs

T = TypeVar("T")


class TuningClient:
    """Of the blocking client."""

    _policy: RetryPolicy

    def _run(self, flow: Flow[T]) -> T:
        raise NotImplementedError

    @property
    def files(self) -> Files:
        """Files for fine-tuning of the key's tenant."""
        return Files(self._run, self._policy)

    @property
    def jobs(self) -> Jobs:
        """Fine-tuning jobs of the key's tenant."""
        return Jobs(self._run, self._policy)


class AsyncTuningClient:
    """Of the client for asyncio."""

    _policy: RetryPolicy

    async def _run(self, flow: Flow[T]) -> T:
        raise NotImplementedError

    @property
    def files(self) -> AsyncFiles:
        """Files for fine-tuning of the key's tenant."""
        return AsyncFiles(self._run, self._policy)

    @property
    def jobs(self) -> AsyncJobs:
        """Fine-tuning jobs of the key's tenant."""
        return AsyncJobs(self._run, self._policy)
