"""Quota of a tenant's storage: versions, and bytes of the different files that they have.

A file counts once for a tenant, whatever number of its versions have it. The server knows what a
tenant has at some change of the registry; the script that publishes adds what was published since,
from a short list of the tenant, and decides. So of uploads at the same time, on any servers, none
passes with another one. Removals count when the server has seen them, within a second.

    {bmt}:quota:<tenant>    list: "<generation> <bytes> <file digest>" of the newest versions
"""

from __future__ import annotations

from dataclasses import dataclass

from bmt_server.errors import PayloadTooLarge
from bmt_server.ipc.blob import PREFIX

#: Outcomes of the script: over the quota, and a server that lags behind the list.
OVER, BEHIND = "over_quota", "quota_behind"

# ARGV[11]: '', or numbers with blanks between: change that the server knows, versions and bytes
# then, most versions and bytes (0: any number), bytes of the file, 1 if the tenant has it.
LUA = """
local quota = {}
for number in string.gmatch(ARGV[11] or '', '%d+') do quota[#quota + 1] = tonumber(number) end
local function check_quota(file)
  if #quota == 0 then return nil end
  local versions, bytes, has = quota[2], quota[3], quota[7] == 1
  local newest = redis.call('LRANGE', KEYS[12], 0, 255)
  local complete = #newest < 256
  for i = 1, #newest do
    local generation, size, of = string.match(newest[i], '^(%d+) (%d+) (%x+)$')
    if tonumber(generation) <= quota[1] then complete = true break end
    versions, bytes, has = versions + 1, bytes + tonumber(size), has or of == file
  end
  if not complete then return 'quota_behind', '' end
  if has then quota[6] = 0 end
  local most_versions, most_bytes = quota[4], quota[5]
  if (most_versions > 0 and versions + 1 > most_versions)
     or (most_bytes > 0 and quota[6] > 0 and bytes + quota[6] > most_bytes) then
    return 'over_quota', string.format('%.0f %.0f', versions, bytes)
  end
end
local function count_quota(file)
  if #quota == 0 then return end
  local entry = redis.call('GET', KEYS[6]) .. string.format(' %.0f ', quota[6]) .. file
  redis.call('LPUSH', KEYS[12], entry)
  redis.call('LTRIM', KEYS[12], 0, 255)
  redis.call('EXPIRE', KEYS[12], 3600)
end
"""


def quota_key(tenant: str) -> str:
    """Key of a tenant's list."""
    return f"{PREFIX}quota:{tenant}"


@dataclass(frozen=True, slots=True)
class Quota:
    """Storage of a tenant at a change of the registry, and what it may have (0: any number).

    size: bytes of the file that is uploaded; has_file: the tenant has it already.
    """

    tenant: str
    generation: int
    versions: int
    bytes: int
    most_versions: int
    most_bytes: int
    size: int
    has_file: bool

    def words(self) -> str:
        """Argument of the script."""
        known = (self.generation, self.versions, self.bytes)
        numbers = (*known, self.most_versions, self.most_bytes, self.size, int(self.has_file))
        return " ".join(str(max(0, number)) for number in numbers)

    def exceeded(self) -> bool:
        """True if one more version is beyond the quota by what the server knows."""
        added = 0 if self.has_file else self.size
        return bool(self.most_versions and self.versions + 1 > self.most_versions) or bool(
            self.most_bytes and added and self.bytes + added > self.most_bytes
        )

    def refusal(self, versions: int, stored: int) -> PayloadTooLarge:
        """The error for an upload, given what the tenant has."""
        allowed = []
        if self.most_versions:
            allowed.append(f"{versions} of {self.most_versions} versions")
        if self.most_bytes:
            allowed.append(f"{stored} of {self.most_bytes} bytes, and this file has {self.size}")
        return PayloadTooLarge(
            f"tenant {self.tenant!r} stores {' and '.join(allowed)}; delete or prune versions, or "
            "ask the operator for more",
            code="quota_exceeded",
        )
