"""Batches in the registry: work with the parts of its answers (`registry/leased/store.py`)."""

from __future__ import annotations

from bmt_server.errors import BadRequest, NotFound, Unavailable
from bmt_server.registry.batches.record import BATCH_ID, Batch, Part, read_batch, read_part
from bmt_server.registry.leased import store as work

#: Batches of one tenant that have not ended, and of all.
MAX_OPEN, MAX_KEPT = 100, 1000
#: A batch's next record, and its parts.
Change = work.Change[Batch]


class BatchStore(work.WorkStore[Batch]):
    """Batches of all tenants. Methods raise RegistryDown."""

    names = work.Names("batch", "batches", "parts", BATCH_ID)

    def _read(self, data: bytes | None) -> Batch | None:
        return read_batch(data)

    def _not_found(self, work_id: str) -> NotFound:
        return NotFound(f"no batch {work_id[:64]}", code="batch_not_found", param="batch_id")

    async def create(self, batch: Batch, least_ms: int) -> Batch:
        """Keep a new batch. Raises BadRequest if the tenant has too many that have not ended."""
        refusal = BadRequest(
            f"tenant {batch.tenant!r} has {MAX_OPEN} batches that have not ended, which is the "
            "limit; wait for one, or cancel some",
            code="too_many_batches",
        )
        return await self._create(
            batch,
            [],
            least_ms=least_ms,
            most_open=MAX_OPEN,
            most_kept=MAX_KEPT,
            too_many=refusal,
        )

    async def parts(self, batch: Batch) -> list[Part]:
        """The parts of the answers, in the order in which they were kept. Raises Unavailable."""
        read = [read_part(data) for data in await self.listed(batch.id, 0, batch.parts)]
        parts = [part for part in read if part is not None]
        if len(parts) != batch.parts:
            raise Unavailable(f"{len(parts)} of {batch.parts} parts of {batch.id} can be read")
        return parts
