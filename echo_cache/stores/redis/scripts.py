"""
What must be one step, in Lua. The one rule: a script needs no clock, and names only keys in the slot of KEYS[1].

Both scripts here walk an index as codec.encode_index describes it. They name keys that are not in KEYS (variants whose
ids only the index knows); these have the digest of KEYS[1] between their braces, which is what Redis Cluster needs.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final, NamedTuple

__all__ = ["DELETE", "SET_VARIANT", "Script", "script_of"]


class Script(NamedTuple):
    """sha1: what servers know it by."""

    source: str
    sha1: str


@functools.lru_cache(maxsize=64)
def script_of(source: str) -> Script:
    """Return the script of *source*; its sum is made once, as long as there are no more than a few of them."""
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


_WALK: Final = """
local function variants(old, head, visit)
  if type(old) ~= 'string' or string.sub(old, 1, #head) ~= head then return end
  local at = #head + 1
  while at + 39 <= #old do
    local a, b, c, d = string.byte(old, at, at + 3)
    local size = ((a * 256 + b) * 256 + c) * 256 + d
    if size < 40 or at + size - 1 > #old then return end
    visit(string.sub(old, at, at + size - 1))
    at = at + size
  end
end
local function name(row)
  return KEYS[1] .. ':' .. string.gsub(string.sub(row, 5, 20), '.', function(c)
    return string.format('%02x', string.byte(c))
  end)
end
"""

# How long a variant lives is asked of its key, so no clock is needed here, and rows whose variant has expired or was
# evicted make room. An entry that does not vary and is in the place of the index moves behind it, as a variant.
#
# KEYS[1]  the primary key
# KEYS[2]  the key of the variant
# ARGV[1]  the beginning of an index of this key
# ARGV[2]  the row of the variant
# ARGV[3]  the row for an entry that does not vary
# ARGV[4]  how many rows an index may have
# ARGV[5]  how long the variant lives, in ms
# ARGV[6]  the variant
# Returns  how many other variants were cut.
SET_VARIANT: Final = script_of(
    _WALK
    + """
local head, row, unvarying, max, longest = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local old, out, cut = redis.pcall('GET', KEYS[1]), {head, row}, {}
if type(old) == 'string' and string.sub(old, 1, 4) == '\\236hoe' then
  redis.call('RENAME', KEYS[1], name(unvarying))
  old = head .. unvarying
end
variants(old, head, function(other)
  if string.sub(other, 5, 20) == string.sub(row, 5, 20) then return end
  local life = redis.call('PTTL', name(other))
  if #out > max then
    cut[#cut + 1] = name(other)
  elseif life ~= -2 then
    out[#out + 1] = other
    longest = math.max(longest, life)
  end
end)
redis.call('SET', KEYS[1], table.concat(out), 'PX', string.format('%.0f', longest))
redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[5])
for _, key in ipairs(cut) do redis.call('UNLINK', key) end
return #cut
"""
)

# KEYS[1]  the primary key
# ARGV[1]  the beginning of an index of this key
# Returns  1 if there was something, 0 if not.
DELETE: Final = script_of(
    _WALK
    + """
variants(redis.pcall('GET', KEYS[1]), ARGV[1], function(row) redis.call('UNLINK', name(row)) end)
return redis.call('UNLINK', KEYS[1])
"""
)
